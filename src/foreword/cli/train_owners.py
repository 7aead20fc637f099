"""foreword train --by owner: a prefix for each owner, each written as it is done.

Beside an owner's checkpoints stands the record of what their run ended in, so that no run is done or kept
twice. Progress is one line for all owners; the report names each of them, for people and for machines.
"""

from __future__ import annotations

import dataclasses
import json as json_format
import shlex
import sys
import time
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from foreword import files
from foreword.cli import output
from foreword.cli.output import LINES, duration
from foreword.cli.train_destinations import Destination
from foreword.errors import (
    CheckpointMismatch,
    DamagedCheckpoint,
    ForewordError,
    ForewordWarning,
    OutputExists,
    OwnersFailed,
)
from foreword.training.settings import OwnersSettings

if TYPE_CHECKING:
    from foreword.base.base_model import BaseModel
    from foreword.cli.train import Request
    from foreword.examples import Example, Preference
    from foreword.prefix import Prefix
    from foreword.training.run_log import Progress

ByOwner = dict[str, list["Example | Preference"]]


def train_owners(request: Request, goal: Destination, owners: OwnersSettings) -> None:
    """Train every owner who is not done, and tell; ends with status 1 if some got no prefix.

    Raises:
        OutputExists: a file of an owner is there that is not this run's result.
        CheckpointMismatch: an owner's run had other settings or data.
        UsageError, WindowExceeded, TrainingStopped: as `train_many`.
    """
    from foreword.prefix_file import check_description
    from foreword.training.train_many import train_many

    check_description({"labels": request.labels, "licence": request.licence})
    by_owner, dev = _by_owner(request.examples), _by_owner(request.dev or ())
    goal.check(by_owner)
    if not request.overwrite:
        _check_files(goal, by_owner)
    if absent := [owner for owner in dev if owner not in by_owner]:
        output.note(f"{len(absent)} owners have dev examples only, and get no prefix: {_some(absent)}")
    base = request.load()
    done = _done_before(request, goal, base, by_owner, dev)
    errors: dict[str, ForewordError] = {}
    waiting = {owner: examples for owner, examples in by_owner.items() if owner not in done}
    settings = request.settings
    steps = {owner: settings.steps_for(len(examples)) for owner, examples in waiting.items()}
    shown = OwnersProgress(steps, settings.batch_size, done=len(done))

    def entering() -> Iterator[tuple[str, list[Example | Preference]]]:
        for owner, examples in waiting.items():
            shown.entered(owner)
            yield owner, examples

    def keep(owner: str, prefix: Prefix) -> None:
        folder = goal.checkpoints(owner)
        earlier = read_record(folder)  # of a run that was cut off between this line and the next but one
        prefix = dataclasses.replace(
            prefix.relabel(licence=request.licence, labels=request.labels),
            created=prefix.created if earlier is None else earlier.created,
        )
        # What an earlier run left is this run's result, or was looked at before the work and may go.
        mine = earlier is not None and goal.find(owner, earlier.digest) is not None
        write_record(folder, prefix)
        if goal.find(owner, prefix.digest) is None:
            goal.write(owner, prefix, overwrite=request.overwrite or mine)
        shown.finished(owner)

    if waiting:
        with shown, warnings.catch_warnings():
            warnings.simplefilter("ignore", ForewordWarning)  # the same is among the notes, with its owner
            try:
                train_many(
                    base,
                    entering(),
                    dev=dev,
                    template=request.template(base.template),
                    start=request.start,
                    checkpoint_dir=goal.checkpoints,
                    checkpoint_every=request.checkpoint_every,
                    into=keep,
                    on_failure=shown.failed,
                    on_progress=shown,
                    **settings.keywords(),
                    **dataclasses.asdict(owners),
                )
            except OwnersFailed as failed:
                errors = failed.errors
    report(base.name, by_owner, done, errors, goal, json=request.json)


def _by_owner(examples: Sequence[Example | Preference]) -> ByOwner:
    by_owner: ByOwner = {}
    for example in examples:
        assert example.owner is not None  # the reader knows the field, and refuses a line without a name
        by_owner.setdefault(example.owner, []).append(example)
    return by_owner


def _check_files(goal: Destination, owners: ByOwner) -> None:
    """Refuse to replace files of which it is not known that the same run wrote them."""
    for owner in owners:
        taken = goal.taken(owner)
        record = read_record(goal.checkpoints(owner))
        if taken is not None and (record is None or goal.find(owner, record.digest) is None):
            raise OutputExists(
                f"{taken} exists already, and is not what this run made; choose another folder or pass "
                "--overwrite to replace it"
            )


def _done_before(
    request: Request, goal: Destination, base: BaseModel, by_owner: ByOwner, dev: ByOwner
) -> set[str]:
    """Owners whose prefixes are there from the same run; nobody's run may have been another one."""
    from foreword.training.checkpoint import list_checkpoints, read
    from foreword.training.train import choose_template, describe, resumed_template

    settings = request.settings
    given = request.template(base.template)
    chosen = choose_template(base, settings, given, request.start)
    done: set[str] = set()
    started: list[str] = []
    anew: list[str] = []
    for owner, examples in by_owner.items():
        folder = goal.checkpoints(owner)
        if not (checkpoints := list_checkpoints(folder)):
            continue
        template = resumed_template(base, chosen, folder, by_default=given is None)
        run = describe(base, settings, template, examples, dev.get(owner, ()), request.start)
        try:
            read(checkpoints[-1], run)
        except DamagedCheckpoint:
            continue  # training takes the one before, or says what is wrong
        except CheckpointMismatch:
            if not request.overwrite:
                raise
            start_anew(folder)
            anew.append(owner)
            continue
        record = read_record(folder)
        if record is not None and goal.find(owner, record.digest) is not None:
            done.add(owner)
        else:
            started.append(owner)
    if anew:
        output.note(f"runs with other settings or data start anew (--overwrite): {_some(anew)}")
    if done or started:
        output.note(f"{len(done)} owners are done already, {len(started)} go on from their checkpoints")
    return done


def _some(owners: Sequence[str]) -> str:
    return ", ".join(map(output.one_line, owners[:3])) + (
        f" and {len(owners) - 3} more" if len(owners) > 3 else ""
    )


# -- record ----------------------------------------------------------------------------------------

RECORD_FILE = "result.json"


@dataclass(frozen=True)
class Record:
    """The prefix that a run ended in.

    Attributes:
        digest: of the prefix file.
        created: when; a second writing of the same result is then the same file.
        origin: how it was made, as in the prefix file.
    """

    digest: str
    created: str
    origin: dict[str, Any]


def read_record(folder: Path) -> Record | None:
    """The record of the run in `folder`; None without one, and without one that can be read."""
    try:
        return Record(**json_format.loads((folder / RECORD_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None  # the run is then finished again from its checkpoint, which costs a moment


def write_record(folder: Path, prefix: Prefix) -> None:
    """Note the result of the run in `folder`. Raises CannotWrite."""
    record = Record(prefix.digest, prefix.created, dataclasses.asdict(prefix.origin))
    files.write_text(folder / RECORD_FILE, json_format.dumps(dataclasses.asdict(record)), overwrite=True)


def start_anew(folder: Path) -> None:
    """Remove record and checkpoints; the record first, so that it never speaks of another run."""
    from foreword.training.checkpoint import list_checkpoints

    (folder / RECORD_FILE).unlink(missing_ok=True)
    for checkpoint in list_checkpoints(folder):
        checkpoint.unlink()


# -- progress --------------------------------------------------------------------------------------

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
        self._start_time = time.monotonic()
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

    def __exit__(self, *_: object) -> None:
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
        seconds = time.monotonic() - self._start_time
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


# -- report ----------------------------------------------------------------------------------------

SHOWN = 20
"""Owners up to which people see a line of each; --json has all."""


def report(
    base: str,
    owners: Collection[str],
    before: Collection[str],
    errors: Mapping[str, ForewordError],
    goal: Destination,
    *,
    json: bool,
) -> None:
    """Print how the run of all `owners` ended, of whom those in `before` were done already.

    Args:
        errors: of those who got no prefix.

    Raises:
        typer.Exit: with status 1, if some owners got no prefix.
    """
    rows = []
    for owner in owners:
        if owner in errors:
            continue
        folder = goal.checkpoints(owner)
        record = read_record(folder)
        assert record is not None  # written before the prefix was
        prefix = goal.find(owner, record.digest)
        row = {"owner": owner, "prefix": prefix, "digest": record.digest, "before": owner in before}
        rows.append({**row, **record.origin, "run": folder})
    failed = [
        {"owner": owner, "type": type(error).__name__, "message": str(error)}
        for owner, error in errors.items()
    ]
    if json:
        error = OwnersFailed(dict(errors), {})
        message = {"type": type(error).__name__, "message": str(error)}
        output.json_object(
            {"base": base, "owners": rows, "failed": failed, **({"error": message} if failed else {})}
        )
    else:
        _print(len(owners), len(before), rows, failed)
    if failed:
        raise typer.Exit(1)


def _print(owners: int, before: int, rows: list[dict[str, Any]], failed: list[dict[str, str]]) -> None:
    if 0 < len(rows) <= SHOWN:
        cells = [
            (
                output.one_line(row["owner"]),
                str(row["examples"]),
                str(row["steps"]),
                "" if row["dev_loss"] is None else f"{row['dev_loss']:.4f}",
                str(row["prefix"]),
            )
            for row in rows
        ]
        output.table(("owner", "examples", "steps", "dev loss", "prefix"), cells)
    if failed:
        output.table(
            ("owner without a prefix", "why"),
            [(output.one_line(one["owner"]), f"{one['type']}: {one['message']}") for one in failed],
        )
    parts = [f"{len(rows) - before} trained"]
    parts += [f"{before} done before"] if before else []
    parts += [f"{len(failed)} failed"] if failed else []
    typer.echo(f"{owners} owners: {', '.join(parts)}")
    if rows and str(rows[0]["prefix"]).endswith(".prefix"):
        command = ["foreword", "generate", "--prefix", str(rows[0]["prefix"]), "YOUR TEXT"]
        typer.echo(f"next: {shlex.join(command)}")
