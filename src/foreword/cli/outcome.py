"""Outcome: how a command ends, for people on standard error, for machines in JSON on standard output.

Status 0 done, 1 failed, 2 wrong use. What is not caught here is a fault of ours and shows its traceback.
"""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from foreword.cli import output
from foreword.errors import ForewordError, ForewordWarning, UsageError

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
        except ForewordError as error:
            return _failed(arguments, type(error).__name__, str(error), _status(error))
        except Interrupted as error:
            return _interrupted(arguments, error.interrupt)
        except typer.Abort:
            return _failed(arguments, "Aborted", "stopped at your word; nothing was done", FAILED)
        except Exception as error:
            if not hasattr(error, "format_message"):  # typer's own, under whatever name its release has
                raise
            return _wrong_use(arguments, error)
    return result if isinstance(result, int) else DONE


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
    message = error.format_message()
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
