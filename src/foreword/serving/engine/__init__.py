"""The local engine: rows of many requests in one continuous batch."""

from __future__ import annotations

from typing import Any

from foreword import _aliases


def __getattr__(name: str) -> Any:
    """A name that stood here when this was one file."""
    return _aliases.old_name(__name__, name)
