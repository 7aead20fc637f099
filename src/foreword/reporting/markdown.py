"""Markdown: tables, for the pages that commands write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> str:
    """A table, whatever its cells hold.

    Args:
        words: the first so many columns are words and stand to the left; the others are figures and
            stand to the right.
    """
    below = ["---" if place < words else "---:" for place in range(len(columns))]
    lines = [columns, below, *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines) + "\n"


def _cell(text: str) -> str:
    # Names of owners are anybody's text; a bar would end the cell, a line break the row.
    return " ".join(text.replace("|", r"\|").split())
