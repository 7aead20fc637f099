"""train: examples and a base model in, a prefix out."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.base import BaseModel
from foreword.encoding import EncodedExample, encode
from foreword.errors import BadExamples, ForewordWarning, UsageError
from foreword.examples import Example, digest
from foreword.initialization import Initialization, starting_point
from foreword.parameterization import Parameterization, ParameterizationSettings
from foreword.prefix import Origin, Prefix
from foreword.template import Template
from foreword.training import checkpoint, curves
from foreword.training.interrupt import stop_on_interrupt
from foreword.training.learner import Learner
from foreword.training.log import TrainingLog
from foreword.training.loop import StepReport, run
from foreword.training.settings import TrainingSettings

SPEED_WINDOW = 10
"""Steps over which speed and time left are averaged."""


class TrainingStopped(KeyboardInterrupt):
    """The user asked to stop; the checkpoint says where the run goes on.

    Attributes:
        step: optimiser steps done.
        checkpoint: the file that was written, or None without a folder.
    """

    def __init__(self, step: int, checkpoint_path: Path | None) -> None:
        where = (
            f"checkpoint: {checkpoint_path}" if checkpoint_path else "no checkpoint_dir, so nothing was kept"
        )
        super().__init__(f"stopped after step {step}; {where}")
        self.step = step
        self.checkpoint = checkpoint_path


@dataclass(frozen=True)
class Progress:
    """Where a run stands; handed to `on_progress` after every step and evaluation.

    Attributes:
        step, steps: done, and to do.
        loss: mean loss per target token over the last steps, in nats; None before the first.
        dev_loss: the last one measured, in nats.
        best_dev_loss, best_step: the best so far.
        tokens_per_second: real tokens, over the last steps.
        seconds_left: at that speed; evaluations are not counted in.
        note: something to tell the user, once.
    """

    step: int
    steps: int
    loss: float | None = None
    dev_loss: float | None = None
    best_dev_loss: float | None = None
    best_step: int | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    note: str | None = None


def train(
    base: BaseModel,
    examples: Sequence[Example],
    *,
    length: int | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    parameterization: str | ParameterizationSettings | None = None,
    init: str | Initialization | None = None,
    seed: int = 0,
    dev: Sequence[Example] | None = None,
    checkpoint_dir: str | Path | None = None,
    template: Template | None = None,
    checkpoint_every: int | None = None,
    tensorboard: bool = False,
    labels: dict[str, str] | None = None,
    licence: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    **more: Any,
) -> Prefix:
    """Learn a prefix for `base` from `examples`; leaving all options out gives the measured defaults.

    Args:
        examples: what to learn from; the loss is on their targets and end token only.
        length: P, number of virtual tokens.
        steps, epochs: how long; give one of them or neither.
        batch_size: examples per step.
        learning_rate: at its height.
        parameterization: "direct", "mlp", "mlp+start", or settings with a width.
        init: "random", "demonstrations", "words:...", "text:...".
        seed: of initialisation and order.
        dev: examples on which the best step is chosen; without them the last step is kept.
        checkpoint_dir: folder of the run: checkpoints, `log.jsonl`, `curves.png`. A run that was
            stopped goes on from there when called again with the same arguments, and ends in the
            same prefix, bit for bit on a CPU, as one that was not.
        template: how a source becomes text; default: `base.template`.
        checkpoint_every: steps between checkpoints; default: a tenth of the run.
        tensorboard: also write TensorBoard files into the run's folder.
        labels, licence: kept in the prefix file.
        on_progress: called after every step and evaluation.
        more: any other field of `TrainingSettings` (warmup, clip, weight_decay, accumulate,
            reduction, evaluate_every, patience, max_length, gradient_checkpointing).

    Returns:
        The prefix of the best step by dev loss, or of the last step.

    Raises:
        UsageError: an option out of range or unknown.
        BadExamples: no examples.
        WindowExceeded: the prefix leaves no room for text.
        CheckpointMismatch: `checkpoint_dir` holds another run.
        TrainingDiverged: the loss became NaN or infinite.
        TrainingStopped: Ctrl-C; a KeyboardInterrupt that says where the checkpoint is.
    """
    settings = make_settings(
        length=length,
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        parameterization=parameterization,
        init=init,
        seed=seed,
        **more,
    )
    report = on_progress or (lambda progress: None)
    chosen = template or base.template
    encoded, encoded_dev = _encode_both(base, chosen, settings, examples, dev or [], report)
    learner = build_learner(base, settings, encoded, encoded_dev)
    description = _describe(base, settings, chosen, examples, dev or [])
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    if folder is not None:
        checkpoint.prepare_folder(folder)
        if found := checkpoint.list_checkpoints(folder):
            learner.restore(*checkpoint.read(found[-1], description))
            report(
                Progress(learner.step, learner.steps, note=f"going on from step {learner.step}: {found[-1]}")
            )
    log = TrainingLog(folder, tensorboard=tensorboard)
    try:
        _drive(base, learner, folder, description, log, report, checkpoint_every)
    finally:
        log.close()
    best = learner.result()
    if folder is not None:
        title = f"{base.name}: {settings.parameterization}, length {settings.length}"
        curves.draw(learner.history, folder / "curves.png", title=title, best_step=best.step)
    return Prefix(
        tensors=best.tensors,
        base=base.identity,
        template=chosen,
        origin=Origin(
            parameterization=str(settings.parameterization),
            initialization="none" if settings.parameterization.kind == "mlp" else str(settings.init),
            seed=settings.seed,
            data_digest=digest(examples),
            examples=len(examples),
            steps=best.step,
            dev_loss=best.dev_loss if encoded_dev else None,
        ),
        licence=licence,
        labels=labels or {},
    )


def make_settings(
    *,
    parameterization: str | ParameterizationSettings | None = None,
    init: str | Initialization | None = None,
    **options: Any,
) -> TrainingSettings:
    """Settings from the keywords of `train`; None stands for the default.

    Raises:
        UsageError: an unknown option or one out of range.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(parameterization, str):
        parameterization = ParameterizationSettings(kind=parameterization)  # type: ignore[arg-type]
    if isinstance(init, str):
        init = Initialization.parse(init)
    if parameterization is not None:
        given["parameterization"] = parameterization
    if init is not None:
        given["init"] = init
    known = {field.name for field in dataclasses.fields(TrainingSettings)}
    if unknown := set(given) - known:
        raise UsageError(f"unknown training options {sorted(unknown)}; known are {sorted(known)}")
    return TrainingSettings(**given)


def build_learner(
    base: BaseModel,
    settings: TrainingSettings,
    examples: Sequence[EncodedExample],
    dev: Sequence[EncodedExample],
) -> Learner:
    """A learner at step 0."""
    start = starting_point(base, settings.init, settings.length, examples, settings.seed)
    parameters = Parameterization(settings.parameterization, start, settings.seed)
    # Only models that need padding gain from batches of like length.
    return Learner(settings, parameters.to(base.device), examples, dev, by_length=not base.takes_positions)


def _encode_both(
    base: BaseModel,
    template: Template,
    settings: TrainingSettings,
    examples: Sequence[Example],
    dev: Sequence[Example],
    report: Callable[[Progress], None],
) -> tuple[list[EncodedExample], list[EncodedExample]]:
    if not examples:
        raise BadExamples("there are no training examples; give at least one")
    window = base.text_limit(settings.length)
    limit = settings.max_length if window is None else min(settings.max_length or window, window)
    encoded, cut = encode(examples, base.tokenizer, template, limit)
    encoded_dev, dev_cut = encode(dev, base.tokenizer, template, limit)
    for what, truncation in (("training", cut), ("dev", dev_cut)):
        if truncation:
            note = f"{what} examples: {truncation}"
            warnings.warn(note, ForewordWarning, stacklevel=3)
            report(Progress(0, settings.steps_for(len(examples)), note=note))
    return encoded, encoded_dev


def _describe(
    base: BaseModel,
    settings: TrainingSettings,
    template: Template,
    examples: Sequence[Example],
    dev: Sequence[Example],
) -> dict[str, Any]:
    return {
        "settings": settings.to_json(),
        "template": template.to_json(),
        "base": dataclasses.asdict(base.identity),
        "dtype": str(base.dtype),
        "data": digest(examples),
        "dev": digest(dev) if dev else None,
    }


def _drive(
    base: BaseModel,
    learner: Learner,
    folder: Path | None,
    description: dict[str, Any],
    log: TrainingLog,
    report: Callable[[Progress], None],
    checkpoint_every: int | None,
) -> None:
    """Run the learner to its end: log, report, write checkpoints, and stop cleanly on Ctrl-C."""
    every = checkpoint_every or max(1, learner.steps // 10)
    recent: deque[StepReport] = deque(maxlen=SPEED_WINDOW)
    last_dev: float | None = None
    written = learner.step
    log.start(learner.history)

    def save() -> Path | None:
        nonlocal written
        if folder is None:
            return None
        tensors, data = learner.state()
        written = learner.step
        return checkpoint.write(folder, learner.step, tensors, data, description)

    def note(row: dict[str, Any]) -> None:
        learner.history.append(row)
        log.add(row)
        report(_progress(learner, recent, last_dev))

    def on_step(step: StepReport) -> None:
        recent.append(step)
        note(
            {
                "step": learner.step,
                "loss": step.loss,
                "token_loss": step.token_loss,
                "gradient_norm": step.norm,
                "learning_rate": step.learning_rate,
                "tokens": step.tokens,
                "seconds": round(step.seconds, 4),
            }
        )

    def on_evaluation(loss: float) -> None:
        nonlocal last_dev
        last_dev = loss
        note({"step": learner.step, "dev_loss": loss, "time": round(time.time(), 1)})

    def should_stop() -> bool:
        # Asked between steps, after a due evaluation: what is saved here is whole.
        if learner.step >= written + every:
            save()
        return request()

    with stop_on_interrupt() as request:
        run(base, learner, on_step=on_step, on_evaluation=on_evaluation, should_stop=should_stop)
        if not learner.finished:
            raise TrainingStopped(learner.step, save())
        save()


def _progress(learner: Learner, recent: deque[StepReport], last_dev: float | None) -> Progress:
    seconds = sum(step.seconds for step in recent)
    evaluated = bool(learner.best.tensors)
    return Progress(
        step=learner.step,
        steps=learner.steps,
        loss=sum(step.token_loss for step in recent) / len(recent) if recent else None,
        dev_loss=last_dev,
        best_dev_loss=learner.best.dev_loss if evaluated else None,
        best_step=learner.best.step if evaluated else None,
        tokens_per_second=sum(step.tokens for step in recent) / seconds if seconds else None,
        seconds_left=(learner.steps - learner.step) * seconds / len(recent) if recent else None,
    )
