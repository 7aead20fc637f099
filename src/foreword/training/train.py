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
from foreword.encoding import EncodedExample, Truncation, encode, name_of
from foreword.errors import BadExamples, ForewordWarning, TrainingDiverged, UsageError
from foreword.examples import Example, Preference, digest
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
    examples: Sequence[Example | Preference],
    *,
    dev: Sequence[Example | Preference] | None = None,
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
        examples: what to learn from; the loss is on their targets and end token only. With `method="dpo"`
            preferences, whose better answers become likelier than the others, compared with the base or,
            if there is one, with `start`.
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
            ("first:N", "last:N"), `placement`, `seed`, `method` ("supervised", "dpo") with `beta` and so on;
            None stands for the default.

    Returns:
        The prefix of the best step by dev loss, or of the last step.

    Raises:
        UsageError: an option out of range, of another type or unknown.
        BadExamples: no examples, one that the chat template refuses (`TemplateRefuses`), preferences without
            `method="dpo"` or examples with it.
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
    encoded = encode_both(base, chosen, settings, examples, dev, report, start=start)
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
    title = f"{base.name}: {settings.parameterization}, length {settings.length}"
    run_to_end(base, trainer, run_log, title, objective_of(settings))
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
                on_evaluation=lambda _, found: run_log.on_evaluation(found),
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
        report=_report(trainer, best.step),
    )
    prefix.check_dtype(base.dtype)
    return prefix


def _report(trainer: Trainer, step: int) -> dict[str, Any]:
    """What a prefix says of its training on preferences; nothing of one on examples."""
    if trainer.settings.method == "supervised":
        return {}
    rows = (row for row in trainer.history if row["step"] == step)
    measured = {name: value for row in rows for name, value in row.items() if name.startswith("dev_reward_")}
    return {"method": trainer.settings.method, "beta": trainer.settings.beta, **measured}


def objective_of(settings: TrainingSettings) -> Objective:
    """What a run with these settings minimises."""
    if settings.beta is None:
        return CROSS_ENTROPY
    from foreword.training.preference import DPO  # for this alone

    return DPO(settings.beta)


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
    examples: Sequence[Example | Preference],
    dev: Sequence[Example | Preference],
    report: Callable[[Progress], None],
    *,
    start: Prefix | None = None,
    owner: str | None = None,
) -> tuple[Sequence[EncodedExample], Sequence[EncodedExample]]:
    """Training and dev examples as token ids; what was cut is reported and warned of.

    Args:
        start: what preferences are compared with, instead of the base alone.

    Raises:
        BadExamples: there are no training examples, or some of another kind than the method's.
        WindowExceeded: the prefix leaves no room for text.
        UsageError: a token that the base has no embedding for.
    """
    if not examples:
        raise BadExamples("there are no training examples; give at least one")
    fits = base.max_text_tokens(settings.lengths(base.geometry).get("decoder", 0))
    limit = settings.max_length if fits is None else min(settings.max_length or fits, fits)
    both: list[Sequence[EncodedExample]] = []
    for what, given in (("training", examples), ("dev", dev)):
        rows, truncation = _encode(base, template, settings, given, limit, start)
        for number, (example, row) in enumerate(zip(given, rows, strict=True)):
            base.check_ids((*row.source_ids, *row.target_ids), f"{what} {name_of(number, example)}")
        if truncation:
            note = f"{what} examples: {truncation}"
            warn(note, ForewordWarning)
            report(Progress(0, settings.steps_for(len(examples)), owner=owner, note=note))
        both.append(rows)
    return both[0], both[1]


def _encode(
    base: BaseModel,
    template: Template,
    settings: TrainingSettings,
    given: Sequence[Example | Preference],
    limit: int | None,
    start: Prefix | None,
) -> tuple[Sequence[EncodedExample], Truncation]:
    """Rows as the method of the settings has them, and what was cut."""
    kind, method = (Preference, "dpo") if settings.method == "dpo" else (Example, "supervised")
    for number, one in enumerate(given):
        if not isinstance(one, kind):
            raise BadExamples(
                f"{name_of(number, one)} is of type {type(one).__name__}, and the method {method} learns "
                f"from {kind.__name__}",
                advice=f"give {kind.__name__} objects, or take another method",
                remedy="examples for dpo" if method == "dpo" else "preferences for supervised",
            )
    apart = base.is_encoder_decoder
    if method == "supervised":
        examples = [one for one in given if isinstance(one, Example)]
        return encode(examples, base.tokenizer, template, limit, apart=apart)
    from foreword.training.preference import encode_preferences, with_reference  # for this alone

    preferences = [one for one in given if isinstance(one, Preference)]
    pairs, cut = encode_preferences(preferences, base.tokenizer, template, limit, apart=apart)
    return with_reference(base, pairs, start, template.placement), cut


def describe(
    base: BaseModel,
    settings: TrainingSettings,
    template: Template,
    examples: Sequence[Example | Preference],
    dev: Sequence[Example | Preference],
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
