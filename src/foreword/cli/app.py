"""The program: its commands, imported by name when asked for, how their help is laid out, and how one ends.

A command ends with status 0 (done), 1 (failed) or 2 (wrong use), for people with a line on standard error,
for machines with JSON on standard output. What is not caught here is a fault of ours and shows its traceback.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import typer
import typer.main
from typer.core import TyperCommand, TyperGroup

from foreword.cli import output
from foreword.cli.options import with_options
from foreword.errors import ForewordError, ForewordWarning, UnknownField, UsageError

COMMANDS = {
    "pull": "Bring a base model onto this disk and say where it is.",
    "train": "Learn a prefix for a base model from a file of examples.",
    "compile": "Make a document a prefix: questions about it are answered without its text.",
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

ADVICE = {
    "other weights": "load the base it was trained for, or train a prefix for this one. A quantised copy of "
    "the base can be declared equivalent: foreword store equate",
    "not declared": "`foreword store equivalences` lists what is declared",
    "unknown prefix": "`foreword store list` shows those that are there",
    "which versions": "name one, as in owner/name@3, or give --all with a name alone",
    "no place for files": "name it, a folder or a URL such as s3://bucket/folder, in FOREWORD_STORE_BLOBS",
    "format not told": "if it is one of these, pass its name with --format",
    "examples for dpo": "leave --method dpo out, or give a file of preferences",
    "preferences for supervised": "take --method dpo, or give a file of examples",
    "no dev examples": "give --dev, or leave --patience out",
    "report worse": "take more --steps, or leave --gate out",
    "harm exceeded, studied": "allow more with --max-harm, or take a larger share --unrelated or fewer "
    "--steps",
    "harm exceeded, matched": "allow more with --max-harm, or take another --length, or --method studied, "
    "which learns from unrelated prompts, too",
    "harm exceeded, exact": "allow more with --max-harm, or leave parts of the document out: its text in the "
    "prompt changes answers by as much",
}
"""What to do on the command line, by `ForewordError.remedy`."""


# -- commands and their help ---------------------------------------------------------------------


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


Command = Callable[..., Any]


class Group(typer.Typer):
    """A group of commands, each with options from the settings in its signature."""

    def __init__(self, help: str, *examples: str, **more: Any) -> None:
        super().__init__(
            help=help, no_args_is_help=True, rich_markup_mode=None, epilog=example(*examples), **more
        )

    def add(self, command: Callable[..., Any], name: str | None = None, *examples: str) -> None:
        """Make a function a command, called as the function unless `name` says otherwise."""
        epilog = example(*examples) if examples else None
        self.command(name, cls=SectionedCommand, epilog=epilog)(with_options(command))

    def takes(
        self, name: str | None = None, *examples: str
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """`add` as a decorator."""

        def decorate(command: Command) -> Command:
            self.add(command, name, *examples)
            return command

        return decorate


def example(*lines: str) -> str:
    """The examples at the end of a help."""
    return "\n".join(("\b\nExample:", *lines))


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
        """Run the command line and end the process with the status of `status_of`."""
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
    epilog = example(module.EXAMPLE) if hasattr(module, "EXAMPLE") else None
    single.command(name, cls=SectionedCommand, epilog=epilog)(with_options(getattr(module, name)))
    return typer.main.get_command(single)


def _module(name: str) -> str:
    return f"foreword.cli.{MODULES.get(name, name)}"


# -- how a command ends --------------------------------------------------------------------------

DONE, FAILED, WRONG_USE = 0, 1, 2


class Interrupted(Exception):
    """Ctrl-C, on its way through typer.

    Attributes:
        interrupt: the KeyboardInterrupt; of training, one that knows its checkpoint.
    """

    def __init__(self, interrupt: KeyboardInterrupt) -> None:
        super().__init__(str(interrupt))
        self.interrupt = interrupt


def status_of(work: Callable[[], Any], arguments: Sequence[str]) -> int:
    """Run a command line and return the status to end with; errors are printed here, once.

    Args:
        work: runs it; an int that it returns is the status.
        arguments: what the user typed behind `foreword`.
    """
    with _warnings_as_notes():
        try:
            result = work()
        except UnknownField as error:
            options = " or ".join(
                f"--{part}-field" if part in ("source", "target", "owner") else f"--fields {part}=NAME"
                for part in error.parts
            )
            advice = f"; if it has another name, say so with {options}"
            return _failed(arguments, type(error).__name__, f"{error.found}{advice}", FAILED)
        except ForewordError as error:
            return _failed(arguments, type(error).__name__, message_of(error), _status(error))
        except Interrupted as error:
            return _interrupted(arguments, error.interrupt)
        except typer.Abort:
            return _failed(arguments, "Aborted", "stopped at your word; nothing was done", FAILED)
        except Exception as error:
            if not hasattr(error, "format_message"):  # typer's own, under whatever name its release has
                raise
            return _wrong_use(arguments, error)
    return result if isinstance(result, int) else DONE


def message_of(error: ForewordError) -> str:
    """What an error says, with the command line's own advice where it has one."""
    ours = ADVICE.get(error.remedy or "")
    return f"{error.found}; {ours}" if ours else str(error)


def _status(error: ForewordError) -> int:
    return WRONG_USE if isinstance(error, UsageError) else FAILED


def _failed(arguments: Sequence[str], kind: str, message: str, status: int) -> int:
    if wants_json(arguments):
        output.json_object({"error": {"type": kind, "message": message}})
    else:
        typer.echo(f"error: {message}", err=True)
    return status


def _wrong_use(arguments: Sequence[str], error: Any) -> int:
    context: Any = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError" and not wants_json(arguments):
        typer.echo(context.get_help(), err=True)
        return WRONG_USE
    message = error.format_message().replace(": Value error, ", ": ", 1)  # of the library that typer reads by
    if context is not None:
        end = "" if message.endswith(("?", ".")) else "."
        message = f"{message}{end} See `{context.command_path} --help`"
    return _failed(arguments, "UsageError", message, int(error.exit_code))


def _interrupted(arguments: Sequence[str], interrupt: KeyboardInterrupt) -> int:
    message = str(interrupt) or "interrupted"
    checkpoint: Path | None = getattr(interrupt, "checkpoint", None)
    if checkpoint is not None:
        message = f"{message}\ngo on with: {shlex.join(['foreword', *arguments])}"
    if wants_json(arguments):
        return _failed(arguments, type(interrupt).__name__, message, FAILED)
    typer.echo(message, err=True)
    return FAILED


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether --json was typed; also known where the command line could not be understood."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options


@contextmanager
def _warnings_as_notes() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("always", ForewordWarning)
        usual = warnings.showwarning

        def show(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, ForewordWarning):
                output.note(str(message))
            else:
                usual(message, category, *place, **more)

        warnings.showwarning = show
        output.forget_notes()
        yield
