"""Commands: which there are, imported by name when they are asked for; and how their help is laid out."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import typer
import typer.main
from typer.core import TyperCommand, TyperGroup

from foreword.cli.outcome import Interrupted, status_of

COMMANDS = {
    "pull": "Bring a base model onto this disk and say where it is.",
    "train": "Learn a prefix for a base model from a file of examples.",
    "generate": "Write text after each prompt, each under its own prefix.",
    "evaluate": "Measure a prefix: loss, perplexity, BLEU and chrF over a file of examples.",
    "store": "Prefixes by name and version: list, put, get, label, share, verify, forget.",
    "serve": "Serve the OpenAI API: chat with prefixes, upload examples, train new ones.",
    "import": "Turn prefixes of other libraries, or of the hub, into prefix files.",
    "export": "Turn prefix files into what PEFT loads, or share them on the hub.",
    "bench": "Measure speed and memory on this machine, beside PEFT and the machine's limit.",
    "reproduce": "Run an experiment and write a report with its figures.",
}
"""Names and first lines of their help, in the order of use; here, so that help imports no command.

A command is the function of its name in the module of its name, or that module's `app`.
"""

MODULES = {"import": "imports", "export": "exports"}
"""Where the name of a command is none that Python takes for a module."""


class SectionedCommand(TyperCommand):
    """A command whose options stand in sections (`rich_help_panel`), in plain text."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options, section by section, in the order of the function."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
                sections.setdefault(getattr(parameter, "rich_help_panel", None) or usual, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records, col_max=26)


class Commands(TyperGroup):
    """The commands of `foreword`."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the commands that this installation has."""
        return [name for name in COMMANDS if importlib.util.find_spec(_module(name))]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, or None."""
        return load(cmd_name) if cmd_name in self.list_commands(ctx) else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As typer does; its own guess at a mistyped name knows only commands that are imported."""
        if args[0] not in COMMANDS and (close := difflib.get_close_matches(args[0], COMMANDS)):
            ctx.fail(f"No such command {args[0]!r}. Did you mean {close[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name]) for name in self.list_commands(ctx)])

    def invoke(self, ctx: Any) -> Any:
        """Run the command; Ctrl-C leaves it as an exception that typer does not turn into a status."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted(error) from error

    def main(self, args: Sequence[str] | None = None, *_: Any, **extra: Any) -> NoReturn:
        """Run the command line and end the process with the status of `outcome.status_of`."""
        arguments = list(sys.argv[1:] if args is None else args)
        extra |= {"prog_name": "foreword", "standalone_mode": False}
        sys.exit(status_of(lambda: super(Commands, self).main(arguments, **extra), arguments))


def load(name: str) -> Any:
    """The command or group of commands called `name`."""
    module = importlib.import_module(_module(name))
    if hasattr(module, "app"):
        module.app.rich_markup_mode = None  # plain text everywhere, as docs/cli.md has it
        group = typer.main.get_group(module.app)
        group.name = name
        return group
    single = typer.Typer(rich_markup_mode=None, add_completion=False)
    epilog = getattr(module, "EXAMPLE", None)
    single.command(name, cls=SectionedCommand, epilog=epilog and f"\b\nExample:\n{epilog}")(
        getattr(module, name)
    )
    return typer.main.get_command(single)


def _module(name: str) -> str:
    return f"foreword.cli.{MODULES.get(name, name)}"
