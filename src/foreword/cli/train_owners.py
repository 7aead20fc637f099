"""foreword train --by owner: a prefix for each owner, each written as it is done."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from foreword.cli import output
from foreword.cli.train_destinations import Destination
from foreword.cli.train_progress import OwnersProgress
from foreword.cli.train_record import begin_anew, read_record, write_record
from foreword.cli.train_report import Outcome, tell
from foreword.cli.train_request import Request
from foreword.errors import (
    CheckpointMismatch,
    DamagedCheckpoint,
    ForewordError,
    ForewordWarning,
    OutputExists,
    OwnersFailed,
)

if TYPE_CHECKING:
    from foreword.base.base_model import BaseModel
    from foreword.examples import Example
    from foreword.prefix import Prefix

ByOwner = dict[str, list["Example"]]


def train_owners(asked: Request, goal: Destination, *, places: int, pass_tokens: int, isolated: bool) -> None:
    """Train every owner who is not done, and tell; ends with status 1 if some got no prefix.

    Raises:
        OutputExists: a file of an owner is there that is not this run's result.
        CheckpointMismatch: an owner's run had other settings or data.
        UsageError, WindowExceeded, TrainingStopped: as `train_many`.
    """
    from foreword.prefix_file import check_description
    from foreword.training.settings import make_settings
    from foreword.training.train_many import train_many

    check_description({"labels": asked.labels, "licence": asked.licence})
    by_owner, dev = _by_owner(asked.examples), _by_owner(asked.dev or ())
    goal.check(by_owner)
    if not asked.overwrite:
        _check_files(goal, by_owner)
    if absent := [owner for owner in dev if owner not in by_owner]:
        output.note(f"{len(absent)} owners have dev examples only, and get no prefix: {_some(absent)}")
    base = asked.load()
    done = _done_before(asked, goal, base, by_owner, dev)
    errors: dict[str, ForewordError] = {}
    waiting = {owner: examples for owner, examples in by_owner.items() if owner not in done}
    settings = make_settings(**asked.settings)
    steps = {owner: settings.steps_for(len(examples)) for owner, examples in waiting.items()}
    shown = OwnersProgress(steps, settings.batch_size, done=len(done))

    def entering() -> Iterator[tuple[str, list[Example]]]:
        for owner, examples in waiting.items():
            shown.entered(owner)
            yield owner, examples

    def keep(owner: str, prefix: Prefix) -> None:
        folder = goal.checkpoints(owner)
        earlier = read_record(folder)  # of a run that was cut off between this line and the next but one
        prefix = dataclasses.replace(
            prefix.relabel(licence=asked.licence, labels=asked.labels),
            created=prefix.created if earlier is None else earlier.created,
        )
        # What an earlier run left is this run's result, or was looked at before the work and may go.
        mine = earlier is not None and goal.find(owner, earlier.digest) is not None
        write_record(folder, prefix)
        if goal.find(owner, prefix.digest) is None:
            goal.write(owner, prefix, overwrite=asked.overwrite or mine)
        shown.finished(owner)

    if waiting:
        with shown, warnings.catch_warnings():
            warnings.simplefilter("ignore", ForewordWarning)  # the same is among the notes, with its owner
            try:
                train_many(
                    base,
                    entering(),
                    dev=dev,
                    template=asked.template(base.template),
                    start=asked.start,
                    checkpoint_dir=goal.checkpoints,
                    checkpoint_every=asked.checkpoint_every,
                    places=places,
                    pass_tokens=pass_tokens,
                    isolated=isolated,
                    into=keep,
                    on_failure=shown.failed,
                    on_progress=shown,
                    **asked.settings,
                )
            except OwnersFailed as failed:
                errors = failed.errors
    tell(Outcome(base.name, list(by_owner), done, errors), goal, json=asked.json)


def _by_owner(examples: Sequence[Example]) -> ByOwner:
    found: ByOwner = {}
    for example in examples:
        assert example.owner is not None  # the reader was told the field, and refuses a line without a name
        found.setdefault(example.owner, []).append(example)
    return found


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
    asked: Request, goal: Destination, base: BaseModel, by_owner: ByOwner, dev: ByOwner
) -> set[str]:
    """Owners whose prefixes are there from the same run; nobody's run may have been another one."""
    from foreword.training.checkpoint import list_checkpoints, read
    from foreword.training.settings import make_settings
    from foreword.training.train import choose_template, describe

    settings = make_settings(**asked.settings)
    template = choose_template(base, settings, asked.template(base.template))
    done: set[str] = set()
    begun: list[str] = []
    anew: list[str] = []
    for owner, examples in by_owner.items():
        folder = goal.checkpoints(owner)
        if not (found := list_checkpoints(folder)):
            continue
        run = describe(base, settings, template, examples, dev.get(owner, ()), asked.start)
        try:
            read(found[-1], run)
        except DamagedCheckpoint:
            continue  # training takes the one before, or says what is wrong
        except CheckpointMismatch:
            if not asked.overwrite:
                raise
            begin_anew(folder)
            anew.append(owner)
            continue
        record = read_record(folder)
        if record is not None and goal.find(owner, record.digest) is not None:
            done.add(owner)
        else:
            begun.append(owner)
    if anew:
        output.note(f"runs with other settings or data start anew (--overwrite): {_some(anew)}")
    if done or begun:
        output.note(f"{len(done)} owners are done already, {len(begun)} go on from their checkpoints")
    return done


def _some(owners: Sequence[str]) -> str:
    return ", ".join(map(output.one_line, owners[:3])) + (
        f" and {len(owners) - 3} more" if len(owners) > 3 else ""
    )
