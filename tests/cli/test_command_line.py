"""The command line of a report says what was typed, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from foreword.cli.output import command_line

app = typer.Typer()


@app.callback()
def _group() -> None:
    """Keeps one command a sub-command."""


@app.command()
def dig(
    context: typer.Context,
    place: Annotated[Path, typer.Argument()] = Path("garden"),
    depth: Annotated[float, typer.Option("--depth", "-d")] = 1.5,
    until: Annotated[str | None, typer.Option()] = None,
    tool: Annotated[list[str] | None, typer.Option()] = None,
    fast: Annotated[bool, typer.Option("--fast")] = False,
    fill: Annotated[bool, typer.Option("--fill/--no-fill")] = True,
    out: Annotated[Path | None, typer.Option()] = None,
) -> None:
    typer.echo(command_line(context, without=("out",)))


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ([], ""),
        (["-d", "2"], " --depth 2.0"),
        (["--depth", "1.5", "--fill"], ""),  # what they are anyway
        (["a place"], " 'a place'"),
        (["--until", "it's done"], """ --until 'it'"'"'s done'"""),
        (["--fast", "--no-fill"], " --fast --no-fill"),
        (["--tool", "spade", "--tool", "fork"], " --tool spade --tool fork"),
        (["--out", "hole"], ""),
        (["--out", "hole", "--fast", "meadow"], " meadow --fast"),
    ],
)
def test_a_command_line_holds_what_differs_from_the_defaults(typed: list[str], told: str) -> None:
    done = CliRunner().invoke(app, ["dig", *typed], prog_name="earth")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"earth dig{told}\n"
