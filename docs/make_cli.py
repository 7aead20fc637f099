"""Write docs/cli.md: the help of every command, as the commands themselves print it.

python docs/make_cli.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from foreword.cli import app

OUTPUT = Path(__file__).with_name("cli.md")
WIDTH = 88
INTRODUCTION = """# Commands

Made from the commands' own help by `python docs/make_cli.py`; a test keeps it in step.

- Status: 0 done, 1 failed, 2 wrong use. A failed command leaves every file as it was.
- With `--json`, standard output carries exactly one JSON object. An error is one, too:
  `{"error": {"type": "...", "message": "..."}}`. Notes and progress go to standard error.
- Ctrl-C during `foreword train` or `foreword compile` finishes the step, writes a checkpoint and says which
  command goes on.
- `foreword --install-completion` sets up completion in your shell.
"""


def render() -> str:
    """The content of docs/cli.md."""
    parts = [INTRODUCTION]
    for depth, path, text in _helps(typer.main.get_command(app), ("foreword",), None):
        parts.append(f"{'#' * (depth + 1)} {' '.join(path)}\n\n```\n{text.strip()}\n```\n")
    return "\n".join(parts)


def _helps(command: Any, path: tuple[str, ...], parent: Any) -> Iterator[tuple[int, tuple[str, ...], str]]:
    context = command.context_class(
        command, info_name=path[-1], parent=parent, terminal_width=WIDTH, max_content_width=WIDTH
    )
    # The options that concern the shell are named once, above.
    command.params = [p for p in command.params if p.name not in ("install_completion", "show_completion")]
    yield len(path), path, command.get_help(context)
    if hasattr(command, "list_commands"):
        for name in command.list_commands(context):
            yield from _helps(command.get_command(context, name), (*path, name), context)


if __name__ == "__main__":
    OUTPUT.write_text(render())
