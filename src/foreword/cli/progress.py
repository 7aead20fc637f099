"""Progress on standard error: a bar for a terminal, a line now and then for a file."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

import typer

from foreword.cli import output

if TYPE_CHECKING:
    from foreword.training.run_log import Progress

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._print_held()

    def __call__(self, progress: Progress) -> None:
        """Take what training reports."""
        if progress.note is not None:
            output.note(progress.note)
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

    def __enter__(self) -> TrainingBar:
        self._bar.start()
        output.notes_above(lambda line: self._console.print(line, markup=False, highlight=False))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        output.notes_plain()
        self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        """Take what training reports."""
        if progress.note is not None:
            output.note(progress.note)
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
