"""Trials: methods by sizes of training data by subsets, each a piece of the ledger.

First every method's learning rate (or prompt) is chosen on dev examples, on a subset of its own; then it is
kept. A trial trains on its subset, keeps the step with the lowest dev loss, and is measured on examples that
no choice has seen.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foreword import files
from foreword.base.base_model import BaseModel
from foreword.evaluation import Prediction
from foreword.research.baselines.registry import Choice
from foreword.research.experiments.measure import measure
from foreword.research.experiments.plan import SEEDS_APART, OnProgress, Plan, Trial
from foreword.research.experiments.results import Results
from foreword.research.experiments.splits import DataSplits
from foreword.research.experiments.tuning import attempt, choose


def settings_of(base: BaseModel, material: DataSplits, plan: Plan) -> dict[str, Any]:
    """What makes a run this run and no other. What may grow is not in it."""
    training = plan.training({}, plan.seed)
    return {
        **material.counts(),
        **material.digests(),
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
    material: DataSplits,
    plan: Plan,
    ledger: Results,
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
            if choice is None:
                ledger.add(trial.piece, choice=None, diverged=True, seconds=0.0)
            else:
                _make(base, trial, choice, material, plan, ledger, folder, on_progress)
            on_trial()
    on_progress("trials", len(trials), len(trials))


def _make(
    base: BaseModel,
    trial: Trial,
    choice: Choice,
    material: DataSplits,
    plan: Plan,
    ledger: Results,
    folder: Path,
    on_progress: OnProgress,
) -> None:
    begun = time.perf_counter()
    examples = material.subset(trial.size, plan.seed, str(trial.subset))
    seed = plan.seed + trial.subset + SEEDS_APART * trial.seed
    trainee, found = attempt(
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


def _line(group: str, prediction: Prediction) -> str:
    row = {"group": group, "source": prediction.source, "references": prediction.references}
    return json.dumps({**row, "text": prediction.text}, ensure_ascii=False) + "\n"


def _since(begun: float) -> float:
    return round(time.perf_counter() - begun, 1)
