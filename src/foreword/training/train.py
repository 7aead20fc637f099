"""train: examples and a base model in, a prefix out.

Ctrl-C asks a run to stop after its step; it writes a checkpoint, from which the same call goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Unpack

from foreword.base.base_model import BaseModel
from foreword.encoding import EncodedExample, encode, name_of
from foreword.errors import BadExamples, ForewordWarning, TrainingDiverged, UsageError
from foreword.examples import Example, digest
from foreword.prefix import Origin, Prefix
from foreword.prefix_file import check_description
from foreword.template import Template, training_template
from foreword.training import checkpoint
from foreword.training.loop import run
from foreword.training.objective import CROSS_ENTROPY, Objective
from foreword.training.run_log import Progress, RunLog
from foreword.training.settings import TrainingOptions, TrainingSettings, make_settings
from foreword.training.trainer import Trainer, build_trainer
from foreword.validation import checks_arguments, warn


@dataclass
class StopRequest:
    """Whether the user has asked to stop."""

    made: bool = False

    def __call__(self) -> bool:
        return self.made


@contextlib.contextmanager
def stop_on_interrupt() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C (or SIGTERM) inside the block into a request; the second one interrupts.

    Outside of the main thread, where Python allows no signal handlers, nothing is changed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if request.made:
            raise KeyboardInterrupt
        request.made = True

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class TrainingStopped(KeyboardInterrupt):
    """The user asked to stop after `step` optimizer steps; `checkpoint` is the file to go on from or None."""

    def __init__(self, step: int, checkpoint_path: Path | None) -> None:
        where = (
            f"checkpoint: {checkpoint_path}" if checkpoint_path else "no checkpoint_dir, so nothing was kept"
        )
        super().__init__(f"stopped after step {step}; {where}")
        self.step = step
        self.checkpoint = checkpoint_path


@checks_arguments
def train(
    base: BaseModel,
    examples: Sequence[Example],
    *,
    dev: Sequence[Example] | None = None,
    checkpoint_dir: str | Path | None = None,
    template: Template | None = None,
    start: Prefix | None = None,
    checkpoint_every: int | None = None,
    tensorboard: bool = False,
    labels: dict[str, str] | None = None,
    licence: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    **options: Unpack[TrainingOptions],
) -> Prefix:
    """Learn a prefix for `base` from `examples`; leaving all options out gives the measured defaults.

    Args:
        examples: what to learn from; the loss is on their targets and end token only.
        dev: examples on which the best step is chosen; without them the last step is kept.
        checkpoint_dir: folder of the run: checkpoints, `log.jsonl`, `curves.png`. A run that was
            stopped goes on from there when called again with the same arguments, and ends in the
            same prefix, bit for bit on a CPU, as one that was not.
        template: how a source becomes text; default: that of `start`, else the base's chat template, else
            `base.template` (source, newline, target) of a base that has none.
        start: a prefix to begin at, instead of `init`.
        checkpoint_every: steps between checkpoints; default: a tenth of the run.
        tensorboard: also write TensorBoard files into the run's folder.
        labels, licence: kept in the prefix file.
        on_progress: called after every step and evaluation.
        options: fields of `TrainingSettings`, each explained in docs/settings.md: `length` virtual tokens
            (of an encoder-decoder also by stream: {"encoder": 5, "decoder": 10, "cross": 5}), `steps` or
            `epochs`, `batch_size`, `learning_rate`, `parameterization` ("direct", "scaled", "mlp",
            "mlp+start", "embedding"), `init` ("random", "demonstrations", "words:...", "text:..."), `layers`
            ("first:N", "last:N"), `placement`, `seed` and so on; None stands for the default.

    Returns:
        The prefix of the best step by dev loss, or of the last step.

    Raises:
        UsageError: an option out of range, of another type or unknown.
        BadExamples: no examples, or one that the chat template refuses (`TemplateRefuses`).
        WindowExceeded: the prefix leaves no room for text.
        CheckpointMismatch: `checkpoint_dir` holds another run.
        TrainingDiverged: the loss became NaN or infinite.
        TrainingStopped: Ctrl-C; a KeyboardInterrupt that says where the checkpoint is.
    """
    settings = make_settings(**options)
    check_description({"labels": labels, "licence": licence})  # before hours of work, not after them
    examples, dev = list(examples), list(dev or ())  # read several times
    settings.check_with(dev=bool(dev), start=start is not None)
    check_folder(checkpoint_dir, checkpoint_every)
    report = on_progress or (lambda progress: None)
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    chosen = choose_template(base, settings, template, start)
    chosen = resumed_template(base, chosen, folder, by_default=template is None)
    encoded = encode_both(base, chosen, settings, examples, dev, report)
    trainer = build_trainer(base, settings, *encoded, start=start, placement=chosen.placement)
    description = describe(base, settings, chosen, examples, dev, start)
    run_log = RunLog(
        trainer,
        folder=folder,
        description=description,
        on_progress=report,
        checkpoint_every=checkpoint_every,
        tensorboard=tensorboard,
    )
    run_to_end(base, trainer, run_log, f"{base.name}: {settings.parameterization}, length {settings.length}")
    return make_prefix(
        base, trainer, chosen, description["data"], start=start, labels=labels, licence=licence
    )


def run_to_end(
    base: BaseModel, trainer: Trainer, run_log: RunLog, title: str, objective: Objective = CROSS_ENTROPY
) -> None:
    """Step one trainer until it is done, or the user stops it; its checkpoints and log are kept.

    Args:
        title: of the picture of its losses.

    Raises:
        TrainingDiverged: the loss became NaN or infinite.
        TrainingStopped: Ctrl-C.
    """
    try:
        with stop_on_interrupt() as request:

            def should_stop() -> bool:
                run_log.save_when_due()
                return request()

            run(
                base,
                iter([trainer]),
                objective=objective,
                on_step=lambda _, step: run_log.on_step(step),
                on_evaluation=lambda _, loss: run_log.on_evaluation(loss),
                on_finish=lambda _: None,
                on_divergence=_raise,
                should_stop=should_stop,
            )
        if not trainer.finished:
            raise TrainingStopped(trainer.step, run_log.save())
        run_log.finish(title)
    finally:
        run_log.close()


def make_prefix(
    base: BaseModel,
    trainer: Trainer,
    template: Template,
    data_digest: str,
    *,
    start: Prefix | None = None,
    labels: dict[str, str] | None = None,
    licence: str | None = None,
) -> Prefix:
    """What a run ends in, as a prefix that says how it was made.

    Raises:
        NonFinitePrefix: numbers that are none in the base's data type.
    """
    best, settings = trainer.result(), trainer.settings
    layers = settings.layers
    initial = str(settings.init) if start is None else f"prefix {start.digest[:12]}"
    prefix = Prefix(
        tensors=best.tensors,
        base=base.identity,
        template=template,
        positions=trainer.trained.positions,
        origin=Origin(
            parameterization=f"{settings.parameterization}{f', layers {layers}' if layers else ''}",
            initialization="none" if settings.parameterization.kind == "mlp" else initial,
            seed=settings.seed,
            data_digest=data_digest,
            examples=len(trainer.examples),
            steps=best.step,
            dev_loss=best.dev_loss if trainer.dev else None,
        ),
        licence=licence,
        labels=labels or {},
        template_digest=template.rendering_digest(base.tokenizer),
        template_rendering=template.rendering(base.tokenizer),
    )
    prefix.check_dtype(base.dtype)
    return prefix


def check_folder(checkpoint_dir: object, checkpoint_every: int | None) -> None:
    """Refuse an interval of checkpoints without a folder for them.

    Raises:
        UsageError: there is none.
    """
    if checkpoint_every is not None and checkpoint_dir is None:
        raise UsageError(
            f"checkpoint_every is {checkpoint_every}, but there is no folder for checkpoints; give "
            "checkpoint_dir"
        )


def choose_template(
    base: BaseModel, settings: TrainingSettings, template: Template | None, start: Prefix | None = None
) -> Template:
    """The run's template: the one given, or that of `start`, or the base's own, with the settings' placement.

    Raises:
        UsageError: an infix for an encoder-decoder.
    """
    if template is None and start is not None:
        template = start.template
    chosen = template or training_template(base.template, base.tokenizer)
    if settings.placement is not None:
        chosen = dataclasses.replace(chosen, placement=settings.placement)
    base.check_placement(chosen)
    return chosen


def resumed_template(
    base: BaseModel, template: Template, folder: Path | None, *, by_default: bool = False
) -> Template:
    """The template of the run in `folder` that is gone on with, or of one that begins today.

    A template that writes the date keeps the day on which the run began. A run of an earlier release goes on
    without what is the default since: an encoder-decoder's special tokens, and the chat template.

    Args:
        by_default: nobody said which template.
    """
    earlier = None if folder is None else checkpoint.newest_run(folder)
    if earlier is None:
        return template.dated(base.tokenizer)
    former, ours = earlier["template"], base.template
    if by_default and template.style == "chat" and former["style"] == ours.style == "separator":
        template = dataclasses.replace(ours, placement=template.placement)
    own_tokens = (template.source_tokens, template.target_tokens) == (ours.source_tokens, ours.target_tokens)
    if own_tokens and former.keys().isdisjoint({"source_tokens", "target_tokens"}):
        template = dataclasses.replace(template, source_tokens=None, target_tokens=None, start=None)
    if template.date is None and template.writes_date(base.tokenizer):
        return dataclasses.replace(template, date=former.get("date"))
    return template.dated(base.tokenizer)


def encode_both(
    base: BaseModel,
    template: Template,
    settings: TrainingSettings,
    examples: Sequence[Example],
    dev: Sequence[Example],
    report: Callable[[Progress], None],
    *,
    owner: str | None = None,
) -> tuple[list[EncodedExample], list[EncodedExample]]:
    """Training and dev examples as token ids; what was cut is reported and warned of.

    Raises:
        BadExamples: there are no training examples.
        WindowExceeded: the prefix leaves no room for text.
        UsageError: a token that the base has no embedding for.
    """
    if not examples:
        raise BadExamples("there are no training examples; give at least one")
    fits = base.max_text_tokens(settings.lengths(base.geometry).get("decoder", 0))
    limit = settings.max_length if fits is None else min(settings.max_length or fits, fits)
    apart = base.is_encoder_decoder
    encoded, cut = encode(examples, base.tokenizer, template, limit, apart=apart)
    encoded_dev, dev_cut = encode(dev, base.tokenizer, template, limit, apart=apart)
    for what, given, rows in (("training", examples, encoded), ("dev", dev, encoded_dev)):
        for number, (example, row) in enumerate(zip(given, rows, strict=True)):
            base.check_ids((*row.source_ids, *row.target_ids), f"{what} {name_of(number, example)}")
    for what, truncation in (("training", cut), ("dev", dev_cut)):
        if truncation:
            note = f"{what} examples: {truncation}"
            warn(note, ForewordWarning)
            report(Progress(0, settings.steps_for(len(examples)), owner=owner, note=note))
    return encoded, encoded_dev


def describe(
    base: BaseModel,
    settings: TrainingSettings,
    template: Template,
    examples: Sequence[Example],
    dev: Sequence[Example],
    start: Prefix | None = None,
) -> dict[str, Any]:
    """What makes a run this run and no other; a checkpoint goes on only under the same description."""
    return {
        "settings": settings.to_json(),
        "template": template.to_json(),
        "base": dataclasses.asdict(base.identity),
        "positions": base.positions,
        "dtype": str(base.dtype),
        **({} if base.quantization is None else {"quantization": base.quantization}),
        "data": digest(examples),
        "dev": digest(dev) if dev else None,
        "start": None if start is None else start.digest,
    }


def _raise(trainer: Trainer, error: TrainingDiverged) -> None:
    raise error
