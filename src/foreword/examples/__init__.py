"""Examples: what a prefix is learned from, and the readers for each data format."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from foreword.examples.example import (
    Entry,
    Example,
    Preference,
    digest,
    entries_of,
    examples_of,
    references,
    source_key,
)

if TYPE_CHECKING:
    from foreword.examples.readers import read_examples, read_preferences

__all__ = [
    "Entry",
    "Example",
    "Preference",
    "digest",
    "entries_of",
    "examples_of",
    "read_examples",
    "read_preferences",
    "references",
    "source_key",
]


_HOMES = {"read_examples": "readers", "read_preferences": "readers"}


def __getattr__(name: str) -> Any:
    """Readers of files, imported when first used: who has examples already needs none."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'foreword.examples' has no attribute {name!r}")
