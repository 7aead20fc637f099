"""Output of `foreword store`: tables for people, JSON for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import typer


def as_json(value: Any) -> None:
    """One JSON object on one line."""
    typer.echo(json.dumps(value, ensure_ascii=False, default=str))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table; text of others in it is shown as it is, never read as markup."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(_printable(cell)) for cell in row))
    # Wide enough for a pipe: nobody wants digests broken by a width that nobody chose.
    Console(width=None if sys.stdout.isatty() else 240).print(drawn)


def facts(values: Mapping[str, Any], indent: str = "") -> None:
    """Names and values, one a line; nested ones indented, empty ones left out."""
    filled = {name: value for name, value in values.items() if value not in (None, "", (), [], {})}
    width = max((len(name) for name in filled), default=0)
    for name, value in filled.items():
        if isinstance(value, Mapping):
            typer.echo(f"{indent}{name}")
            facts(value, indent + "  ")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            typer.echo(f"{indent}{name:<{width}}  {_printable(shown)}")


def _printable(text: str) -> str:
    """Escape what could drive a terminal: names of models and notes come from whoever made the file."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
