"""Output: results on standard output, notes on standard error; JSON and tables."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

_noted: set[str] = set()
_printers: list[Callable[[str], None]] = []


def json_object(value: Mapping[str, Any]) -> None:
    """One JSON object, on one line of standard output; infinity and NaN become null."""
    typer.echo(as_json(value))


def as_json(value: Any) -> str:
    """`value` as JSON that every parser reads."""
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]], *, overwrite: bool) -> None:
    """A file with a JSON object a line.

    Raises:
        OutputExists: it is there and `overwrite` is false.
        CannotWrite: no right, no space, no such folder.
    """
    from foreword.files import write_text

    write_text(path, "".join(as_json(row) + "\n" for row in rows), overwrite=overwrite)


def note(text: str) -> None:
    """A line for people on standard error; the same line only once in a command."""
    if text in _noted:
        return
    _noted.add(text)
    line = f"note: {text}"
    if _printers:
        _printers[-1](line)
    else:
        typer.echo(line, err=True)


def forget_notes() -> None:
    """Begin a new command in this process."""
    _noted.clear()
    _printers.clear()


def notes_above(printer: Callable[[str], None]) -> None:
    """Let notes be printed by `printer`, which keeps a progress bar below them."""
    _printers.append(printer)


def notes_plain() -> None:
    """The reverse of `notes_above`."""
    _printers.pop()


WIDEST = 100_000
"""Columns of a pipe: no cell is folded there."""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, lines: bool = False) -> None:
    """A table on standard output; cells are text as it is, never read as markup.

    On a terminal long cells are folded; in a pipe a row is a line, for grep and awk.

    Args:
        lines: a line between rows, for cells of several lines.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_lines=lines)
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(printable(cell)) for cell in row))
    console = Console(file=sys.stdout)
    if not console.is_terminal:
        console.width = WIDEST
    console.print(drawn)


def printable(text: str) -> str:
    """Escape what could drive a terminal: models write whatever they write."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """Printable, and on one line: a name from a file may hold line breaks."""
    return printable(text.replace("\n", "\\n").replace("\t", "\\t"))


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
