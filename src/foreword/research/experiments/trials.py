"""Trials: methods by sizes of training data by subsets, each a record of the results.

First every method's learning rate (or prompt) is chosen on dev examples, on a subset of its own; then it is
kept. A trial trains on its subset, keeps the step with the lowest dev loss, and is measured on examples that
no choice has seen.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword import files
from foreword.base.base_model import BaseModel
from foreword.encoding import encode
from foreword.errors import TrainingDiverged
from foreword.evaluation import Prediction
from foreword.examples import Example
from foreword.research.baselines.fit import Fit, fit
from foreword.research.baselines.protocol import Adapter, AdapterInputs
from foreword.research.baselines.registry import RATE, Choice, Method
from foreword.research.experiments.checks import choices
from foreword.research.experiments.measure import measure
from foreword.research.experiments.plan import SEEDS_APART, TUNING, OnProgress, Plan, Trial, seconds_since
from foreword.research.experiments.results import Results, choice_key, chosen_before, chosen_key
from foreword.research.experiments.splits import DataSplits


def settings_of(base: BaseModel, splits: DataSplits, plan: Plan) -> dict[str, Any]:
    """What makes a run this run and no other. What may grow is not in it."""
    training = plan.training({}, plan.seed)
    return {
        **splits.counts(),
        **splits.digests(),
        "base fingerprint": base.fingerprint,
        "dtype": str(base.dtype).removeprefix("torch."),
        **({} if base.quantization is None else {"quantization": base.quantization}),
        "max_length": plan.max_length,
        "length": plan.length,
        "steps": plan.steps,
        **({} if plan.epochs is None else {"epochs": plan.epochs}),
        "batch_size": plan.batch_size,
        "patience": plan.patience,
        "warmup": training.warmup,
        "clip": training.max_grad_norm,
        "rates chosen at": plan.tuning_size if plan.tuned else "not chosen",
        "instruction": plan.instruction,
        "decoding": dict(sorted(plan.decoding.items())),
        "seed": plan.seed,
    }


def run(
    base: BaseModel,
    splits: DataSplits,
    plan: Plan,
    results: Results,
    folder: Path,
    on_progress: OnProgress,
    on_trial: Callable[[], None] = lambda: None,
) -> None:
    """Make the trials that the results do not have, and the choices that they need.

    The texts of each go to `folder`/outputs, so that other metrics can be computed of them.

    Args:
        on_trial: called after each.
    """
    experiment = _Experiment(base, splits, plan, results, on_progress)
    trials = list(plan.trials())
    for number, trial in enumerate(trials):
        on_progress("trials", number, len(trials))
        if trial.key not in results.records:
            choice = _choose(experiment, trial.method)
            if choice is None:
                results.add(trial.key, choice=None, diverged=True, seconds=0.0)
            else:
                _make(experiment, trial, choice, folder)
            on_trial()
    on_progress("trials", len(trials), len(trials))


def choose(
    base: BaseModel,
    method: Method,
    splits: DataSplits,
    plan: Plan,
    results: Results,
    on_progress: OnProgress,
) -> Choice | None:
    """The point of the method's grid with the lowest dev loss; None if training diverged at all of them.

    A rate at the edge has the grid extended. A prompt, once chosen, is kept as a record of the results.
    """
    return _choose(_Experiment(base, splits, plan, results, on_progress), method)


@dataclass(frozen=True)
class _Experiment:
    """What all trials and choices of a run have in common."""

    base: BaseModel
    splits: DataSplits
    plan: Plan
    results: Results
    on_progress: OnProgress

    def train(
        self, method: Method, choice: Choice, examples: Sequence[Example], seed: int, name: str
    ) -> tuple[Adapter, Fit | None]:
        """One training: the adapter at its best step; None instead of how it went if it diverged."""
        base, plan, apart = self.base, self.plan, self.base.is_encoder_decoder
        rows, _ = encode(examples, base.tokenizer, base.template, plan.max_length, apart=apart)
        inputs = AdapterInputs(base, examples, rows, plan.length, seed, choice, plan.instruction)
        adapter = method.begin(inputs)
        dev, _ = encode(self.splits.dev, base.tokenizer, adapter.template, plan.max_length, apart=apart)

        def on_step(done: int, steps: int) -> None:
            self.on_progress(name, done, steps)

        try:
            return adapter, fit(base, adapter, rows, dev, plan.training(choice, seed), on_step)
        except TrainingDiverged:
            return adapter, None


def _choose(experiment: _Experiment, method: Method) -> Choice | None:
    if not experiment.plan.tuned:
        return method.default
    if (before := chosen_before(method, experiment.results)) is not None:
        return before
    best = _best(experiment, method)
    if best and RATE not in best:
        experiment.results.add(chosen_key(method), choice=best)
    return best


def _best(experiment: _Experiment, method: Method) -> Choice | None:
    plan, results = experiment.plan, experiment.results
    waiting = choices(experiment.base, method, experiment.splits, plan)
    if len(waiting) == 1:
        return waiting[0]
    tried: list[tuple[float, Choice]] = []
    while waiting:
        choice = waiting.pop(0)
        name = choice_key(method, choice)
        if name not in results.records:
            start_time = time.perf_counter()
            examples = experiment.splits.subset(plan.tuning_size, plan.seed, TUNING)
            _, fitted = experiment.train(method, choice, examples, plan.seed, name)
            results.add(
                name,
                choice=choice,
                dev_loss=fitted and fitted.dev_loss,
                step=fitted and fitted.step,
                curve=fitted and fitted.curve,
                seconds=seconds_since(start_time),
            )
        loss = results.records[name]["dev_loss"]
        tried.append((math.inf if loss is None else loss, choice))
        if not waiting and RATE in choice and (further := method.wider({c[RATE]: x for x, c in tried})):
            waiting.append(further)
    loss, best = min(tried, key=lambda pair: pair[0])
    return None if math.isinf(loss) else best


def _make(experiment: _Experiment, trial: Trial, choice: Choice, folder: Path) -> None:
    plan, splits, results = experiment.plan, experiment.splits, experiment.results
    start_time = time.perf_counter()
    examples = splits.subset(trial.size, plan.seed, str(trial.subset))
    seed = plan.seed + trial.subset + SEEDS_APART * trial.seed
    adapter, fitted = experiment.train(trial.method, choice, examples, seed, trial.key)
    if fitted is None:
        results.add(trial.key, choice=choice, diverged=True, seconds=seconds_since(start_time))
        return
    evaluated = adapter.finish()
    training_seconds = seconds_since(start_time)
    groups: dict[str, dict[str, float]] = {}
    lines: list[str] = []
    for name, group in splits.measured.items():
        experiment.on_progress(f"{trial.key}: measured on {name}", len(groups), len(splits.measured))
        groups[name], predictions = measure(evaluated, group, plan.decoding)
        lines += [_line(name, prediction) for prediction in predictions]
    (folder / "outputs").mkdir(exist_ok=True)
    files.write_text(folder / "outputs" / trial.outputs, "".join(lines), overwrite=True)
    results.add(
        trial.key,
        choice=choice,
        figures=groups,
        dev_loss=fitted.dev_loss,
        step=fitted.step,
        steps=fitted.steps,
        curve=fitted.curve,
        trained=evaluated.trained,
        kept=evaluated.kept,
        training_seconds=training_seconds,
        seconds=seconds_since(start_time),
    )


def _line(group: str, prediction: Prediction) -> str:
    row = {"group": group, "source": prediction.source, "references": prediction.references}
    return json.dumps({**row, "text": prediction.text}, ensure_ascii=False) + "\n"
