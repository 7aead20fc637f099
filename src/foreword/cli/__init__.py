"""The command line: `foreword COMMAND`, one thin file per command.

Commands are imported when they are asked for, and what they need when they run: help must not wait
for torch.
"""

from __future__ import annotations

from typing import Annotated

import typer

from foreword import __version__
from foreword.cli.app import Commands

app = typer.Typer(
    name="foreword", cls=Commands, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"foreword {__version__}")
        raise typer.Exit


@app.callback(
    epilog="\b\nExample:\n"
    "  foreword pull smollm2-135m-instruct\n"
    "  foreword train data.jsonl --base smollm2-135m-instruct --out mine.prefix\n"
    '  foreword generate --prefix mine.prefix "a source text"'
)
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Learn small prefixes for one frozen language model, keep them, and run them.

    Every command ends with status 0 (done), 1 (failed) or 2 (wrong use). With --json, standard output
    carries one JSON object, for errors too; notes and progress go to standard error.
    """


def main() -> None:
    """The `foreword` program."""
    app()


__all__ = ["app", "main"]
