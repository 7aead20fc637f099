"""Progress of a run with many owners: one line for all of them, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import typer

from foreword.cli import output
from foreword.cli.progress import LINES, duration

if TYPE_CHECKING:
    from foreword.training.run_log import Progress

NOTES = 3
"""Notes about single owners that are shown; the others are counted."""


class OwnersProgress:
    """Counts owners, rows and loss; a bar on a terminal, a line for every tenth of the steps elsewhere."""

    def __init__(self, steps: Mapping[str, int], batch_size: int, *, done: int) -> None:
        """`steps` to do by owner, with those done in an earlier run; `done`: owners beside them."""
        self._left = dict(steps)
        self._total = sum(steps.values())
        self._batch_size = batch_size
        self._owners = done + len(steps)
        self._done = done
        self._failed = 0
        self._running: set[str] = set()
        self._losses: dict[str, float] = {}
        self._loss: float | None = None
        self._stepped = 0
        self._begun = time.monotonic()
        self._printed = 0
        self._notes = 0
        self._shown: tuple[Any, Any] | None = None

    def __enter__(self) -> OwnersProgress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            console = Console(stderr=True)
            bar = Bar(
                BarColumn(bar_width=24), TextColumn("{task.fields[figures]}", markup=False), console=console
            )
            self._shown = bar, bar.add_task("", total=self._total, figures=str(self))
            bar.start()
            output.notes_above(lambda line: console.print(line, markup=False, highlight=False))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown is not None:
            output.notes_plain()
            self._shown[0].stop()
        else:
            typer.echo(str(self), err=True)
        if self._notes > NOTES:
            output.note(f"and {self._notes - NOTES} more notes about single owners")

    def entered(self, owner: str) -> None:
        """An owner has a place."""
        self._running.add(owner)

    def finished(self, owner: str) -> None:
        """An owner has a prefix."""
        self._leave(owner)
        self._done += 1
        self._show()

    def failed(self, owner: str, error: Exception) -> None:
        """An owner gets none."""
        self._leave(owner)
        self._failed += 1
        self._show()

    def __call__(self, progress: Progress) -> None:
        """Take what training reports."""
        owner = progress.owner or ""
        left = progress.steps - progress.step
        if progress.note is not None:
            self._left[owner] = left  # steps of an earlier run are nobody's speed
            if not progress.note.startswith("going on") or "damaged" in progress.note:
                self._notes += 1
                if self._notes <= NOTES:
                    output.note(f"{output.one_line(owner)}: {progress.note}")
            return
        self._stepped += max(0, self._left.get(owner, progress.steps) - left)
        self._left[owner] = left
        if progress.loss is not None:
            self._losses[owner] = progress.loss
            self._loss = sum(self._losses.values()) / len(self._losses)
        self._show()

    def __str__(self) -> str:
        waiting = self._owners - self._done - self._failed - len(self._running)
        parts = [f"owners {self._done}/{self._owners} done, {len(self._running)} running, {waiting} waiting"]
        if self._failed:
            parts[0] += f", {self._failed} failed"
        if self._loss is not None:
            parts.append(f"loss {self._loss:.4f}")
        seconds = time.monotonic() - self._begun
        if self._stepped and seconds:
            parts.append(f"{self._stepped * self._batch_size / seconds:.1f} rows/s")
            if left := sum(self._left.values()):
                parts.append(f"{duration(left * seconds / self._stepped)} left")
        return "  ".join(parts)

    def _leave(self, owner: str) -> None:
        self._running.discard(owner)
        self._losses.pop(owner, None)
        self._left[owner] = 0

    def _show(self) -> None:
        reached = self._total - sum(self._left.values())
        if self._shown is not None:
            bar, task = self._shown
            bar.update(task, completed=reached, figures=str(self))
        elif reached * LINES // max(1, self._total) > self._printed and reached < self._total:
            self._printed = reached * LINES // self._total
            typer.echo(str(self), err=True)
