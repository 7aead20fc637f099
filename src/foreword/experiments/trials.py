"""Trials: methods by sizes of training data by subsets, each a piece of the ledger.

First every method's learning rate (or prompt) is chosen on dev examples, on a subset of its own; then it is
kept. A trial trains on its subset, keeps the step with the lowest dev loss, and is measured on examples that
no choice has seen.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foreword import files
from foreword.base import BaseModel
from foreword.baselines.harness import Fit, fit
from foreword.baselines.method import RATE, Choice, Method, shown
from foreword.baselines.trainee import Setting, Trainee
from foreword.encoding import encode
from foreword.errors import TrainingDiverged, UsageError
from foreword.evaluation import Prediction
from foreword.examples import Example
from foreword.experiments.ledger import Ledger
from foreword.experiments.material import Material
from foreword.experiments.measuring import measure
from foreword.training.settings import TrainingSettings
from foreword.training.train import make_settings

TUNING = "tuning"
"""Name of the subset that learning rates are chosen on; no trial uses it."""

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Plan:
    """What shall be tried. Methods, sizes and repetitions may grow from one start to the next.

    Attributes:
        methods: at every size.
        others: at `tuning_size` alone.
        sizes: numbers of training examples.
        subsets, seeds: for each size, so many subsets, each with so many seeds.
        tuning_size: training examples on which learning rates are chosen; `tuned` false: the usual ones.
        length: P of all methods that have virtual tokens.
        steps, batch_size, patience: of training.
        seed: of subsets, beginnings and order.
        max_length: most tokens of an example; longer ones are cut as in training.
        instruction: for methods that prompt.
        decoding: keywords of `generate`.
    """

    methods: tuple[Method, ...]
    sizes: tuple[int, ...]
    others: tuple[Method, ...] = ()
    subsets: int = 3
    seeds: int = 1
    tuning_size: int = 100
    tuned: bool = True
    length: int = 10
    steps: int | None = None
    batch_size: int = 8
    patience: int | None = None
    seed: int = 0
    max_length: int = 512
    instruction: str = ""
    decoding: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = {"subsets": self.subsets, "seeds": self.seeds, "tuning_size": self.tuning_size}
        counts |= {f"size {size}": size for size in self.sizes}
        for name, count in counts.items():
            if count < 1:
                raise UsageError(f"{name} is {count}; expected 1 or more")
        if not self.sizes:
            raise UsageError("no sizes; give at least one number of training examples")
        self.training({}, 0)

    def training(self, choice: Choice, seed: int) -> TrainingSettings:
        """Settings of one training."""
        return make_settings(
            length=self.length,
            steps=self.steps,
            batch_size=self.batch_size,
            patience=self.patience,
            seed=seed,
            learning_rate=choice.get(RATE),
        )

    def trials(self) -> Iterator[Trial]:
        """All of them, in the order in which they are made: whole tables as early as possible."""
        for repetition in range(self.subsets * self.seeds):
            subset, seed = divmod(repetition, self.seeds)
            for size in self.sizes:
                for method in self.methods:
                    yield Trial(method, size, subset, seed)
        for method in self.others:
            for repetition in range(self.subsets * self.seeds):
                subset, seed = divmod(repetition, self.seeds)
                yield Trial(method, self.tuning_size, subset, seed)


@dataclass(frozen=True)
class Trial:
    """One method on one subset with one seed."""

    method: Method
    size: int
    subset: int
    seed: int

    @property
    def piece(self) -> str:
        """Its name in the ledger."""
        return f"{self.method.name}, n = {self.size}, subset {self.subset}, seed {self.seed}"

    @property
    def outputs(self) -> str:
        """Name of the file with its texts."""
        return re.sub(r"[^a-z0-9-]+", "_", self.piece.lower()) + ".jsonl"


def settings_of(base: BaseModel, material: Material, plan: Plan) -> dict[str, Any]:
    """What makes a run this run and no other. What may grow is not in it."""
    training = plan.training({}, plan.seed)
    return {
        "train examples": len(material.train),
        "dev examples": len(material.dev),
        **{f"measured: {name}": len(examples) for name, examples in material.measured.items()},
        **material.digests(),
        "base fingerprint": base.fingerprint,
        "dtype": str(base.dtype).removeprefix("torch."),
        "max_length": plan.max_length,
        "length": plan.length,
        "steps": plan.steps,
        "batch_size": plan.batch_size,
        "patience": plan.patience,
        "warmup": training.warmup,
        "clip": training.clip,
        "rates chosen at": plan.tuning_size if plan.tuned else "not chosen",
        "instruction": plan.instruction,
        "decoding": dict(sorted(plan.decoding.items())),
        "seed": plan.seed,
    }


def choice_piece(method: Method, choice: Choice) -> str:
    """Name in the ledger of a point of a grid."""
    return f"grid of {method.name}: {shown(choice)}"


def run(
    base: BaseModel,
    material: Material,
    plan: Plan,
    ledger: Ledger,
    folder: Path,
    on_progress: OnProgress,
    on_trial: Callable[[], None] = lambda: None,
) -> None:
    """Make the trials that the ledger does not have, and the choices that they need.

    The texts of each go to `folder`/outputs, so that other metrics can be computed of them.

    Args:
        on_trial: called after each.
    """
    trials = list(plan.trials())
    for number, trial in enumerate(trials):
        on_progress("trials", number, len(trials))
        if trial.piece not in ledger.pieces:
            choice = choose(base, trial.method, material, plan, ledger, on_progress)
            _make(base, trial, choice, material, plan, ledger, folder, on_progress)
            on_trial()
    on_progress("trials", len(trials), len(trials))


def choose(
    base: BaseModel, method: Method, material: Material, plan: Plan, ledger: Ledger, on_progress: OnProgress
) -> Choice:
    """The point of the method's grid with the lowest dev loss; a rate at the edge has the grid made wider."""
    waiting = method.choices(base)
    if not plan.tuned or len(waiting) == 1:
        return method.usual
    tried: list[tuple[float, Choice]] = []
    while waiting:
        choice = waiting.pop(0)
        piece = choice_piece(method, choice)
        if piece not in ledger.pieces:
            begun = time.perf_counter()
            examples = material.subset(plan.tuning_size, plan.seed, TUNING)
            _, found = _train(
                base, method, choice, examples, material.dev, plan, plan.seed, piece, on_progress
            )
            ledger.add(
                piece,
                choice=choice,
                dev_loss=None if found is None else found.dev_loss,
                step=None if found is None else found.step,
                curve=None if found is None else found.curve,
                seconds=_since(begun),
            )
        loss = ledger.pieces[piece]["dev_loss"]
        tried.append((math.inf if loss is None else loss, choice))
        if not waiting and RATE in choice and (further := method.wider({c[RATE]: x for x, c in tried})):
            waiting.append(further)
    best = min(tried, key=lambda pair: pair[0])
    if math.isinf(best[0]):
        raise TrainingDiverged(
            f"{method.name} diverged at all of {', '.join(shown(choice) for _, choice in tried)}"
        )
    return best[1]


def _make(
    base: BaseModel,
    trial: Trial,
    choice: Choice,
    material: Material,
    plan: Plan,
    ledger: Ledger,
    folder: Path,
    on_progress: OnProgress,
) -> None:
    begun = time.perf_counter()
    examples = material.subset(trial.size, plan.seed, str(trial.subset))
    seed = plan.seed + trial.subset * plan.seeds + trial.seed
    trainee, found = _train(
        base, trial.method, choice, examples, material.dev, plan, seed, trial.piece, on_progress
    )
    if found is None:
        ledger.add(trial.piece, choice=choice, diverged=True, seconds=_since(begun))
        return
    subject = trainee.finish()
    trained = time.perf_counter()
    groups: dict[str, dict[str, float]] = {}
    lines: list[str] = []
    for name, group in material.measured.items():
        on_progress(f"{trial.piece}: measured on {name}", len(groups), len(material.measured))
        groups[name], predictions = measure(subject, group, plan.decoding)
        lines += [_line(name, prediction) for prediction in predictions]
    (folder / "outputs").mkdir(exist_ok=True)
    files.write_text(folder / "outputs" / trial.outputs, "".join(lines), overwrite=True)
    ledger.add(
        trial.piece,
        choice=choice,
        figures=groups,
        dev_loss=found.dev_loss,
        step=found.step,
        steps=found.steps,
        curve=found.curve,
        trained=subject.trained,
        kept=subject.kept,
        training_seconds=round(trained - begun, 1),
        seconds=_since(begun),
    )


def _train(
    base: BaseModel,
    method: Method,
    choice: Choice,
    examples: Sequence[Example],
    dev: Sequence[Example],
    plan: Plan,
    seed: int,
    what: str,
    on_progress: OnProgress,
) -> tuple[Trainee, Fit | None]:
    """The trainee at its best step; None instead of how it went if it diverged."""
    apart, limit = base.is_encoder_decoder, plan.max_length
    rows, _ = encode(examples, base.tokenizer, base.template, limit, apart=apart)
    setting = Setting(base, examples, rows, plan.length, seed, choice, plan.instruction)
    trainee = method.begin(setting)
    dev_rows, _ = encode(dev, base.tokenizer, trainee.template, limit, apart=apart)
    settings = plan.training(choice, seed)
    try:
        return trainee, fit(
            base, trainee, rows, dev_rows, settings, lambda done, steps: on_progress(what, done, steps)
        )
    except TrainingDiverged:
        return trainee, None


def _line(group: str, prediction: Prediction) -> str:
    row = {"group": group, "source": prediction.source, "references": prediction.references}
    return json.dumps({**row, "text": prediction.text}, ensure_ascii=False) + "\n"


def _since(begun: float) -> float:
    return round(time.perf_counter() - begun, 1)
