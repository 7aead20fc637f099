"""Output: results on standard output, as JSON, tables and facts; notes and progress on standard error."""

from __future__ import annotations

import json as json_format
import math
import shlex
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from foreword.training.run_log import Progress

_noted: set[str] = set()
_printers: list[Callable[[str], None]] = []


def json_object(value: Mapping[str, Any]) -> None:
    """One JSON object, on one line of standard output; infinity and NaN become null."""
    typer.echo(as_json(value))


def tell(facts: Mapping[str, Any], text: str, *, json: bool) -> None:
    """What a command did: one JSON object for machines, a line or more for people."""
    if json:
        json_object(facts)
    else:
        typer.echo(text)


def as_json(value: Any) -> str:
    """`value` as JSON that every parser reads."""
    return json_format.dumps(_plain(value), ensure_ascii=False, allow_nan=False)


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


# -- the command of a report ---------------------------------------------------------------------


def command_line(context: typer.Context, without: Collection[str] = ()) -> str:
    """The command as typed, options at their defaults left out.

    Args:
        without: names of parameters to leave out, too: those on which no figure depends.
    """
    words = context.command_path.split()
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if parameter.name not in without and value not in (None, parameter.default):
            words += _words(parameter, value)
    return shlex.join(words)


def _words(parameter: Any, value: Any) -> list[str]:
    if value is True:
        return parameter.opts[:1]  # type: ignore[no-any-return]
    if value is False:  # --no-…, where there is such a name; else it is said by saying nothing
        return parameter.secondary_opts[:1]  # type: ignore[no-any-return]
    name = [] if parameter.param_type_name == "argument" else parameter.opts[:1]
    values = value if isinstance(value, list | tuple) else [value]
    return [word for each in values for word in (*name, str(each))]


# -- progress ------------------------------------------------------------------------------------

LINES = 10
"""About how many lines a whole run prints where there is no terminal."""


def training_progress() -> TrainingBar | TrainingLines:
    """What fits standard error."""
    return TrainingBar() if sys.stderr.isatty() else TrainingLines()


class TrainingLines:
    """A line for every tenth of the steps."""

    def __init__(self) -> None:
        self._held: Progress | None = None
        self._next = 0

    def __enter__(self) -> TrainingLines:
        return self

    def __exit__(self, *_: object) -> None:
        self._print_held()

    def __call__(self, progress: Progress) -> None:
        """Take what training reports."""
        if progress.note is not None:
            self._print_held()
            note(progress.note)
            return
        # A due line waits for the step's dev loss, which comes in a report of its own.
        if self._held is not None and progress.step > self._held.step:
            self._print_held()
        if self._held is not None or progress.step >= self._next:
            self._held = progress
            every = max(1, progress.steps // LINES)
            self._next = (progress.step // every + 1) * every

    def _print_held(self) -> None:
        if self._held is not None:
            typer.echo(f"step {self._held.step}/{self._held.steps}{described(self._held)}", err=True)
            self._held = None


class TrainingBar:
    """A bar with the figures behind it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        self._console = Console(stderr=True)
        self._bar = Bar(
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            console=self._console,
        )
        self._task: Any = None
        self._phases: dict[str, Any] = {}

    def __enter__(self) -> TrainingBar:
        self._bar.start()
        notes_above(lambda line: self._console.print(line, markup=False, highlight=False))
        return self

    def __exit__(self, *_: object) -> None:
        notes_plain()
        self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        """Take what training reports."""
        if progress.note is not None and progress.total is not None:  # a bar of its own
            if progress.note not in self._phases:
                self._phases[progress.note] = self._bar.add_task(
                    "", total=progress.total, figures=progress.note
                )
            self._bar.update(self._phases[progress.note], completed=progress.done)
            return
        if progress.note is not None:
            note(progress.note)
            return
        if self._task is None:
            self._task = self._bar.add_task("", total=progress.steps, figures="")
        self._bar.update(self._task, completed=progress.step, figures=described(progress).strip())


class Counter:
    """A count on standard error, in place on a terminal, a line for every quarter elsewhere."""

    def __init__(self) -> None:
        self._in_place = sys.stderr.isatty()
        self._next: dict[str, int] = {}
        self._began: dict[str, tuple[int, float]] = {}
        self._width = 0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Say that `done` of `total` are done, and how long the rest takes at the pace so far."""
        now = time.perf_counter()
        first, start_time = self._began.setdefault(what, (done, now))
        text = f"{what} {done}/{total}"
        if first < done < total:
            seconds = (now - start_time) / (done - first) * (total - done)
            text += f"  {duration(seconds)} left"
        if self._in_place:
            # Back to the start of the line: an error that comes next is not written behind the count. Spaces
            # cover what is left of a longer line.
            end = "" if done >= total else "\r"
            typer.echo(text.ljust(self._width) + end, err=True, nl=done >= total)
            self._width = 0 if done >= total else len(text)
        elif done >= min(self._next.get(what, 0), total):
            typer.echo(text, err=True)
            self._next[what] = done + max(1, total // 4)


def described(progress: Progress) -> str:
    """The figures of a report, those that are known."""
    parts = []
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4f}")
    if progress.dev_loss is not None:
        parts.append(f"dev {progress.dev_loss:.4f}")
    if "reward_accuracy" in progress.dev_measures:
        accuracy, margin = (progress.dev_measures[f"reward_{name}"] for name in ("accuracy", "margin"))
        parts.append(f"dev accuracy {accuracy:.3f} margin {margin:.3f}")
    if progress.best_dev_loss is not None:
        parts.append(f"best {progress.best_dev_loss:.4f} at {progress.best_step}")
    if progress.tokens_per_second is not None:
        parts.append(f"{progress.tokens_per_second:.0f} tokens/s")
    if progress.seconds_left is not None and progress.step < progress.steps:
        parts.append(f"{duration(progress.seconds_left)} left")
    return "".join(f"  {part}" for part in parts)


def duration(seconds: float) -> str:
    """`1 h 05 min`, `3 min 20 s` or `12 s`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
