"""Tally: the figures of trials gathered from the ledger, and methods compared trial by trial."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foreword.baselines.method import Method
from foreword.evaluation.metrics import METRICS
from foreword.experiments.comparison import CHANCE, Verdict, sign_test
from foreword.experiments.ledger import Ledger
from foreword.experiments.measuring import LOSS
from foreword.experiments.rescoring import lower_is_better, score_piece
from foreword.experiments.trials import Plan, Trial


@dataclass(frozen=True)
class Cell:
    """One method at one size: a figure of every finished trial.

    Attributes:
        values: in the order of subsets and seeds.
        diverged: trials without a figure because training diverged.
    """

    values: tuple[float, ...]
    diverged: int = 0

    @property
    def mean(self) -> float:
        """Of the values; NaN without any."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def spread(self) -> float:
        """Standard deviation; 0 of fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


@dataclass(frozen=True)
class Duel:
    """One method against another, over trials on the same subsets with the same seeds.

    Attributes:
        mean, spread: of the figure's difference, positive where the first is better.
        better, worse, ties: trials.
        chance: how often fair coins would fall this unevenly (two-sided sign test).
    """

    rival: Method
    mean: float
    spread: float
    better: int
    worse: int
    ties: int
    chance: float

    @property
    def trials(self) -> int:
        """How many were compared."""
        return self.better + self.worse + self.ties

    @property
    def verdict(self) -> Verdict:
        """Whether the first is better; `open` where mean and count disagree or may be chance."""
        if self.chance > CHANCE:
            return "open"
        if self.mean > 0 and self.better > self.worse:
            return "held"
        return "opposite" if self.mean < 0 and self.better < self.worse else "open"


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
    """One figure, or None if the trial is not made or diverged."""
    metric_set = metric.split(" ")[0]
    piece = score_piece(metric_set, trial) if metric_set in METRICS else trial.piece
    figures: dict[str, dict[str, float]] = ledger.pieces.get(piece, {}).get("figures", {})
    return figures.get(group, {}).get(metric)


def cell(ledger: Ledger, plan: Plan, method: Method, size: int, group: str, metric: str) -> Cell:
    """All finished trials of a method at a size."""
    trials = [trial for trial in plan.trials() if trial.method == method and trial.size == size]
    found = [figure(ledger, trial, group, metric) for trial in trials]
    diverged = sum(bool(ledger.pieces.get(trial.piece, {}).get("diverged")) for trial in trials)
    return Cell(tuple(value for value in found if value is not None), diverged)


def duel(ledger: Ledger, plan: Plan, first: Method, rival: Method, group: str, metric: str) -> Duel | None:
    """The first against the rival wherever both have a figure; None where they never have."""
    sign = -1 if lower_is_better(metric) else 1
    differences = []
    for trial in plan.trials():
        if trial.method != first:
            continue
        own = figure(ledger, trial, group, metric)
        other = figure(ledger, Trial(rival, trial.size, trial.subset, trial.seed), group, metric)
        if own is not None and other is not None:
            differences.append(sign * (own - other))
    if not differences:
        return None
    better, worse = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    return Duel(
        rival,
        statistics.fmean(differences),
        statistics.stdev(differences) if len(differences) > 1 else 0.0,
        better,
        worse,
        len(differences) - better - worse,
        sign_test(better, worse),
    )


def of_piece(ledger: Ledger, plan: Plan, method: Method, key: str) -> list[Any]:
    """What the ledger notes of all finished trials of a method, such as `trained`."""
    pieces = [ledger.pieces.get(trial.piece, {}) for trial in plan.trials() if trial.method == method]
    return [piece[key] for piece in pieces if piece.get(key) is not None]


def all_methods(plan: Plan) -> Sequence[Method]:
    """Those at every size, then the others."""
    return [*plan.methods, *(method for method in plan.others if method not in plan.methods)]


def sizes(plan: Plan) -> list[int]:
    """Numbers of training examples of all trials, in order."""
    return sorted({trial.size for trial in plan.trials()})
