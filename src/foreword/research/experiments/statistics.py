"""Tally: the figures of trials gathered from the ledger, and methods compared trial by trial."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foreword.evaluation.metrics import METRICS
from foreword.research.baselines.registry import Method
from foreword.research.experiments.comparison import Contrast, contrast
from foreword.research.experiments.measure import LOSS
from foreword.research.experiments.plan import Plan, Trial
from foreword.research.experiments.rescoring import lower_is_better, score_piece
from foreword.research.experiments.results import Ledger


@dataclass(frozen=True)
class Cell:
    """One method at one size: a figure of every finished trial.

    Attributes:
        values: in the order of subsets and seeds.
        planned: trials that there are when all are made.
        diverged: trials without a figure because training diverged.
        endless: trials that were measured, and this figure was not finite.
    """

    values: tuple[float, ...]
    planned: int
    diverged: int = 0
    endless: int = 0

    @property
    def whole(self) -> bool:
        """Whether every trial has a figure."""
        return len(self.values) == self.planned > 0

    @property
    def mean(self) -> float:
        """Of the values; NaN without any."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def spread(self) -> float:
        """Standard deviation; 0 of fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


def metrics(ledger: Ledger) -> list[str]:
    """Names of the figures: of the sets that were asked for, of trials themselves, the loss last."""
    names = dict.fromkeys(
        name
        for piece in ledger.pieces.values()
        for group in piece.get("figures", {}).values()
        for name in group
        if name != LOSS
    )
    of_sets = [name for name in names if name.split(" ")[0] in METRICS]
    return [*of_sets, *(name for name in names if name not in of_sets), LOSS]


def figure(ledger: Ledger, trial: Trial, group: str, metric: str) -> float | None:
    """One figure, or None if the trial is not made, diverged, or gave no finite one."""
    return _figures(ledger, trial, group, metric).get(metric)


def cell(ledger: Ledger, plan: Plan, method: Method, size: int, group: str, metric: str) -> Cell:
    """All finished trials of a method at a size."""
    trials = [trial for trial in plan.trials() if trial.method == method and trial.size == size]
    found = [figure(ledger, trial, group, metric) for trial in trials]
    diverged = sum(_diverged(ledger, trial) for trial in trials)
    endless = sum(_figures(ledger, trial, group, metric).get(metric, 0) is None for trial in trials)
    return Cell(tuple(value for value in found if value is not None), len(trials), diverged, endless)


def duel(
    ledger: Ledger,
    plan: Plan,
    first: Method,
    rival: Method,
    group: str,
    metric: str,
    *,
    size: int | None = None,
) -> Contrast | None:
    """The first against the rival on every subset that both were tried on; None without any.

    Seeds of one subset are no new evidence of what another subset would give: their mean counts as one. A
    subset on which training diverged for one of the two is the other's.

    Args:
        size: of the subsets; None: all sizes.
    """
    sign = -1 if lower_is_better(metric) else 1
    differences: list[float] = []
    won = lost = 0
    for each in sizes(plan) if size is None else (size,):
        for subset in range(plan.subsets):
            pairs = [
                (Trial.of(first, each, subset, seed), Trial.of(rival, each, subset, seed))
                for seed in range(plan.seeds)
            ]
            own_diverged = any(_diverged(ledger, own) for own, _ in pairs)
            rival_diverged = any(_diverged(ledger, other) for _, other in pairs)
            if own_diverged != rival_diverged and all(_made(ledger, *pair) for pair in pairs):
                won, lost = won + rival_diverged, lost + own_diverged
                continue
            figures = [[figure(ledger, trial, group, metric) for trial in pair] for pair in pairs]
            found = [sign * (own - other) for own, other in figures if own is not None and other is not None]
            if found:
                differences.append(statistics.fmean(found))
    return contrast(differences, won=won, lost=lost) if differences or won or lost else None


def of_piece(ledger: Ledger, plan: Plan, method: Method, size: int, key: str) -> list[Any]:
    """What the ledger notes of all finished trials of a method at a size, such as `trained`."""
    trials = [trial for trial in plan.trials() if trial.method == method and trial.size == size]
    pieces = [ledger.pieces.get(trial.piece, {}) for trial in trials]
    return [piece[key] for piece in pieces if piece.get(key) is not None]


def all_methods(plan: Plan) -> Sequence[Method]:
    """Those at every size, then the others."""
    return [*plan.methods, *(method for method in plan.others if method not in plan.methods)]


def sizes(plan: Plan) -> list[int]:
    """Numbers of training examples of all trials, in order."""
    return sorted({trial.size for trial in plan.trials()})


def _diverged(ledger: Ledger, trial: Trial) -> bool:
    return bool(ledger.pieces.get(trial.piece, {}).get("diverged"))


def _made(ledger: Ledger, *trials: Trial) -> bool:
    return all(trial.piece in ledger.pieces for trial in trials)


def _figures(ledger: Ledger, trial: Trial, group: str, metric: str) -> dict[str, float | None]:
    """The figures of a trial among which a metric is; None for one that was not finite."""
    metric_set = metric.split(" ")[0]
    piece = score_piece(metric_set, trial) if metric_set in METRICS else trial.piece
    figures: dict[str, dict[str, float | None]] = ledger.pieces.get(piece, {}).get("figures", {})
    return figures.get(group, {})
