"""Output of `foreword store` that other commands do not have: facts, one a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from foreword.cli.output import one_line


def facts(values: Mapping[str, Any], indent: str = "") -> None:
    """Names and values, one a line; nested ones indented, empty ones left out."""
    filled = {name: value for name, value in values.items() if value not in (None, "", (), [], {})}
    width = max((len(name) for name in filled), default=0)
    for name, value in filled.items():
        if isinstance(value, Mapping):
            typer.echo(f"{indent}{one_line(name)}")
            facts(value, indent + "  ")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            typer.echo(f"{indent}{one_line(name):<{width}}  {one_line(shown)}")
