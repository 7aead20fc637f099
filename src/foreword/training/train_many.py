"""`train_many`: many owners in one run, each ending in a prefix of their own.

Rows of all owners share the passes of the base model; nothing else is shared. An owner enters when another is
done, so any number of them streams through a machine that holds some hundreds at once.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Unpack
from urllib.parse import quote

from foreword.base.base_model import BaseModel
from foreword.base.device_memory import tokens_at_once
from foreword.errors import (
    BadExamples,
    DamagedCheckpoint,
    ForewordError,
    NonFinitePrefix,
    OwnersFailed,
    UsageError,
    WindowExceeded,
    concerning,
)
from foreword.examples import Example, Preference
from foreword.prefix import Prefix
from foreword.template import Template
from foreword.training.loop import Evaluation, StepReport, run
from foreword.training.run_log import Progress, RunLog
from foreword.training.settings import OwnersOptions, TrainingSettings, make_settings, owners_settings
from foreword.training.train import (
    TrainingStopped,
    check_folder,
    choose_template,
    describe,
    encode_both,
    make_prefix,
    objective_of,
    resumed_template,
    stop_on_interrupt,
)
from foreword.training.trainer import Trainer, build_trainer
from foreword.validation import checks_arguments

PASS_TOKENS = 2048
"""A pass of fewer tokens does not fill the matrix products of a CPU."""

OwnersData = Sequence[Example | Preference]
"""Of one owner."""
OwnersExamples = Mapping[str, OwnersData] | Iterable[tuple[str, OwnersData]]


@checks_arguments
def train_many(
    base: BaseModel,
    by_owner: OwnersExamples,
    *,
    dev: Mapping[str, OwnersData] | None = None,
    checkpoint_dir: str | Path | Callable[[str], Path] | None = None,
    checkpoint_every: int | None = None,
    template: Template | None = None,
    start: Prefix | None = None,
    into: Callable[[str, Prefix], None] | None = None,
    on_failure: Callable[[str, ForewordError], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_checkpoint: Callable[[str, Path], None] | None = None,
    should_leave: Callable[[str], bool] | None = None,
    on_leave: Callable[[str, int], None] | None = None,
    **options: Unpack[OwnersOptions],
) -> dict[str, Prefix]:
    """Learn one prefix per owner from that owner's examples alone, all in one run.

    Args:
        by_owner: each owner's examples, or preferences with `method="dpo"`: a mapping, or an iterable of
            (owner, examples) that is read as others end and so may be longer than memory.
        dev: dev examples of the owners that have some.
        start: a prefix that every owner starts from, for instance one trained on pooled data of owners
            who agreed to that: then every owner's prefix holds something of theirs. None, the default,
            lets nothing pass between owners.
        into: called with (owner, prefix) as each is done, instead of keeping it for the result.
        on_failure: called with (owner, error) as each fails; `OwnersFailed` comes at the end all the same.
        on_checkpoint: called with (owner, file) once a checkpoint is written, to copy it elsewhere.
        should_leave: asked with each owner in training before every step. One who is to leave gets a
            checkpoint and no prefix; the others go on.
        on_leave: called with (owner, step) when that checkpoint is written.
        checkpoint_dir: one folder per owner in it (or a function that names an owner's folder); a stopped
            run goes on where each owner was.
        checkpoint_every: steps of an owner between checkpoints; default: a tenth of theirs.
        template: as for `train`.
        options: fields of `TrainingSettings`, as for `train`; the same for all owners. Steps that are not
            given follow each owner's number of examples. And those of `OwnersSettings`:
            `concurrent_owners`, `max_batch_tokens`, and `isolated`, which gives every owner passes of their
            own: slower, and on a CPU bit for bit what `train` computes (with `max_batch_tokens`, which then
            divides each owner's passes: the same whoever the others are, and `train`'s to the last bits).
            Otherwise owners share passes, and results agree to the last bits of float32 arithmetic.

    Returns:
        A prefix per owner, those handed to `into` left out.

    Raises:
        OwnersFailed: some owners had no examples, or some that can't be cut to fit, that have nothing in
            front of the target or that the chat template refuses, or diverged, or ended in numbers beyond the
            base's data type, or have no whole checkpoint to go on from; it holds the other owners' prefixes.
        UsageError, WindowExceeded, CheckpointMismatch, TrainingStopped: as for `train`; an error's
            `owner` says whose files or data it is about, if it is about one's.
    """
    owners, training_options = owners_settings(options)
    settings = make_settings(**training_options)
    settings.check_with(dev=bool(dev), start=start is not None)
    check_folder(checkpoint_dir, checkpoint_every)
    base.max_text_tokens(settings.lengths(base.geometry).get("decoder", 0))  # else every owner would fail
    folder_of = checkpoint_dir
    if folder_of is not None and not callable(folder_of):
        folder_of = functools.partial(owner_folder, Path(folder_of))
    owners_run = _OwnersRun(
        base,
        settings,
        choose_template(base, settings, template, start),
        template is None,
        dev or {},
        start,
        folder_of,
        checkpoint_every,
        into,
        on_failure or (lambda owner, error: None),
        on_progress or (lambda progress: None),
        on_checkpoint or (lambda owner, path: None),
        on_leave or (lambda owner, step: None),
    )
    leaves = should_leave or (lambda owner: False)
    shared_tokens = None if owners.isolated else tokens_of_pass(base, settings)
    pairs = by_owner.items() if isinstance(by_owner, Mapping) else by_owner
    with stop_on_interrupt() as request:

        def should_stop() -> bool:
            for owner, run_log in owners_run.run_logs.items():
                with concerning(owner):
                    run_log.save_when_due()
            return request()

        try:
            run(
                base,
                owners_run.trainers(pairs),
                objective=objective_of(settings),
                concurrent=owners.concurrent_owners,
                max_batch_tokens=owners.max_batch_tokens or shared_tokens,
                isolated=owners.isolated,
                on_step=owners_run.on_step,
                on_evaluation=owners_run.on_evaluation,
                on_finish=owners_run.finish,
                on_divergence=owners_run.diverged,
                should_stop=should_stop,
                should_leave=lambda trainer: leaves(trainer.owner or ""),
                on_leave=owners_run.leave,
            )
            if request.made and owners_run.run_logs:
                raise stopped(owners_run.run_logs.values())
        finally:
            for run_log in owners_run.run_logs.values():
                run_log.close()
    if owners_run.errors:
        raise OwnersFailed(owners_run.errors, owners_run.prefixes)
    return owners_run.prefixes


def tokens_of_pass(base: BaseModel, settings: TrainingSettings) -> int:
    """Tokens of a pass that owners share, where nobody says how many."""
    checkpointed = settings.gradient_checkpointing
    most = tokens_at_once(base.model, base.device, gradient=True, checkpointed=checkpointed)
    return most or PASS_TOKENS


def stopped(run_logs: Collection[RunLog]) -> TrainingStopped:
    """The exception for a run that the user stopped, with a checkpoint of everyone."""
    written = [path for run_log in run_logs if (path := run_log.save()) is not None]
    above = [path.parent.parent for path in written]
    place = Path(os.path.commonpath(above)) if above else None
    return TrainingStopped(max(run_log.trainer.step for run_log in run_logs), place)


def owner_folder(folder: Path, owner: str) -> Path:
    """The folder of an owner's checkpoints in that of a run."""
    # Quoted, so that no name can point elsewhere; the sign in front keeps "." and ".." apart.
    return folder / ("@" + quote(owner, safe=""))


@dataclass
class _OwnersRun:
    """The owners of one run: the logs of those in training, and what the others ended in.

    Attributes:
        by_default: nobody said which template.
        folder_of: an owner's folder of checkpoints; None keeps nothing.
        into, report_failure, report, report_checkpoint, report_leaving: called with a prefix, an error,
            progress, a file, a step.
        seen: all owners that came so far.
    """

    base: BaseModel
    settings: TrainingSettings
    template: Template
    by_default: bool
    dev: Mapping[str, OwnersData]
    start: Prefix | None
    folder_of: Callable[[str], Path] | None
    checkpoint_every: int | None
    into: Callable[[str, Prefix], None] | None
    report_failure: Callable[[str, ForewordError], None]
    report: Callable[[Progress], None]
    report_checkpoint: Callable[[str, Path], None]
    report_leaving: Callable[[str, int], None]
    run_logs: dict[str, RunLog] = field(default_factory=dict)
    prefixes: dict[str, Prefix] = field(default_factory=dict)
    errors: dict[str, ForewordError] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    templates: dict[str, Template] = field(default_factory=dict)

    def trainers(self, pairs: Iterable[tuple[str, OwnersData]]) -> Iterator[Trainer]:
        """A trainer per owner, made when a place is free; owners whose data can't be used are noted."""
        for owner, examples in pairs:
            if owner in self.seen:
                raise UsageError(f"owner {owner!r} comes twice; give all of an owner's examples at once")
            try:
                with concerning(owner):
                    trainer = self._enter(owner, examples)
                yield trainer
            except (BadExamples, WindowExceeded, DamagedCheckpoint) as error:
                self._fail(owner, error)

    def _enter(self, owner: str, examples: OwnersData) -> Trainer:
        base, settings, dev = self.base, self.settings, self.dev.get(owner, ())
        folder = None if self.folder_of is None else self.folder_of(owner)
        template = self.templates[owner] = resumed_template(
            base, self.template, folder, by_default=self.by_default
        )
        if self.by_default and template.style != self.template.style:
            # A run of an earlier release: owners who have not begun get the default that the others had.
            self.template = dataclasses.replace(base.template, placement=template.placement)
        try:
            encoded = encode_both(
                base, template, settings, examples, dev, self.report, start=self.start, owner=owner
            )
        except UsageError as error:  # an empty text in front of a target: theirs, not the run's
            raise BadExamples(str(error)) from error
        placement = template.placement
        trainer = build_trainer(base, settings, *encoded, start=self.start, placement=placement, owner=owner)
        self.seen.add(owner)
        self.run_logs[owner] = RunLog(
            trainer,
            folder=folder,
            description=describe(base, settings, template, examples, dev, self.start),
            on_progress=self.report,
            on_checkpoint=functools.partial(self.report_checkpoint, owner),
            checkpoint_every=self.checkpoint_every,
        )
        return trainer

    def on_step(self, trainer: Trainer, step: StepReport) -> None:
        """Record a step of an owner who is in training."""
        owner = trainer.owner or ""
        with concerning(owner):
            self.run_logs[owner].on_step(step)

    def on_evaluation(self, trainer: Trainer, found: Evaluation) -> None:
        """Record a dev loss of an owner who is in training."""
        owner = trainer.owner or ""
        with concerning(owner):
            self.run_logs[owner].on_evaluation(found)

    def finish(self, trainer: Trainer) -> None:
        """Hand over the prefix of an owner who is done, and forget the rest of them."""
        owner = trainer.owner or ""
        with concerning(owner):
            self._finish(owner, trainer)

    def _finish(self, owner: str, trainer: Trainer) -> None:
        run_log = self.run_logs.pop(owner)
        # As in file names: a picture's title takes $ for mathematics, and its font lacks many letters.
        run_log.finish(f"{quote(owner, safe=' @')}: {self.base.name}")
        template = self.templates.pop(owner)
        try:
            prefix = make_prefix(self.base, trainer, template, run_log.data_digest, start=self.start)
        except NonFinitePrefix as error:
            return self._fail(owner, error)
        if self.into is not None:
            self.into(owner, prefix)
        else:
            self.prefixes[owner] = prefix

    def leave(self, trainer: Trainer) -> None:
        """Keep a checkpoint of an owner who leaves before they are done, and forget the rest of them."""
        owner = trainer.owner or ""
        with concerning(owner):
            run_log = self.run_logs[owner]
            run_log.save()
            del self.run_logs[owner], self.templates[owner]
            run_log.close()
            self.report_leaving(owner, trainer.step)

    def diverged(self, trainer: Trainer, error: ForewordError) -> None:
        """Note an owner whose run can't go on."""
        owner = trainer.owner or ""
        self.run_logs.pop(owner).close()
        self._fail(owner, error)

    def _fail(self, owner: str, error: ForewordError) -> None:
        self.errors[owner] = error
        self.templates.pop(owner, None)
        self.report_failure(owner, error)
