"""Examples: what a prefix is learned from, and the readers for each data format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foreword.examples.example import Entry, Example, digest, entries_of, examples_of, references, source_key

if TYPE_CHECKING:
    from foreword.examples.readers import read_examples

__all__ = [
    "Entry",
    "Example",
    "digest",
    "entries_of",
    "examples_of",
    "read_examples",
    "references",
    "source_key",
]


def __getattr__(name: str) -> Any:
    """read_examples, imported when it is first used: who has examples already needs no reader of files."""
    if name == "read_examples":
        from foreword.examples.readers import read_examples

        return read_examples
    raise AttributeError(f"module 'foreword.examples' has no attribute {name!r}")
