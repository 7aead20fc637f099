"""Statistics: one thing against another, pair by pair, with a sign test; and the figures of all trials.

Personalization compares an owner's own prefix with its rivals, owner by owner; experiments with methods
compare these, subset by subset.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from foreword.evaluation.metrics import METRICS
from foreword.research.baselines.registry import Method
from foreword.research.experiments.measure import LOSS, lower_is_better, score_key
from foreword.research.experiments.plan import Plan, Trial
from foreword.research.experiments.results import Results

SIGNIFICANCE = 0.05
"""A difference whose p-value is above this counts as open."""


@dataclass(frozen=True)
class Column:
    """One owner's dev examples under every prefix: mean losses per target token, in nats.

    Attributes:
        examples, tokens: dev examples, and target tokens in them.
        none, shared: without a prefix, and under the shared one.
        under: by owner, under that owner's prefix.
    """

    owner: str
    examples: int
    tokens: int
    none: float
    shared: float
    under: Mapping[str, float]

    @property
    def own(self) -> float:
        """Under the owner's own prefix."""
        return self.under[self.owner]

    @property
    def others(self) -> float:
        """Mean over the other owners' prefixes."""
        return statistics.fmean(loss for name, loss in self.under.items() if name != self.owner)

    @property
    def rank(self) -> int:
        """Place of the own prefix among all owners' prefixes, 1 for the lowest loss."""
        return 1 + sum(loss < self.own for loss in self.under.values())


Rival = Literal["none", "shared", "others"]
Verdict = Literal["held", "open", "opposite"]


@dataclass(frozen=True)
class PairedTest:
    """One thing against another, over pairs.

    Attributes:
        mean: of the differences, positive where the first is better; NaN if no pair has one.
        spread: their standard deviation; 0 of fewer than two.
        better, worse, ties: pairs in which the first is better, worse and the same; pairs without a
            difference, because one side has no figure, are among them.
        p_value: how often fair coins would favour one side this clearly (two-sided sign test).
    """

    mean: float
    spread: float
    better: int
    worse: int
    ties: int
    p_value: float

    @property
    def pairs(self) -> int:
        """How many were compared."""
        return self.better + self.worse + self.ties

    @property
    def verdict(self) -> Verdict:
        """Whether the first is better; `open` where mean and count disagree or may be chance."""
        if self.p_value > SIGNIFICANCE:
            return "open"
        if (self.mean > 0 or math.isnan(self.mean)) and self.better > self.worse:
            return "held"
        return "opposite" if not self.mean >= 0 and self.better < self.worse else "open"


def contrast_own(columns: Sequence[Column], rival: Rival) -> PairedTest:
    """The own prefixes against `rival`, over the owners of `columns`: how much lower the loss is, in nats."""
    return contrast([getattr(column, rival) - column.own for column in columns])


def contrast(differences: Sequence[float], *, won: int = 0, lost: int = 0) -> PairedTest:
    """Compare by the difference of each pair, positive where the first is better.

    Args:
        won, lost: pairs without a difference, in which the rival, or the first, failed altogether.
    """
    better, worse = sum(d > 0 for d in differences) + won, sum(d < 0 for d in differences) + lost
    return PairedTest(
        statistics.fmean(differences) if differences else math.nan,
        statistics.stdev(differences) if len(differences) > 1 else 0.0,
        better,
        worse,
        len(differences) + won + lost - better - worse,
        sign_test(better, worse),
    )


def sign_test(better: int, worse: int) -> float:
    """How often fair coins fall at least this unevenly, to either side; ties are not counted in."""
    thrown = better + worse
    tail = sum(math.comb(thrown, heads) for heads in range(max(better, worse), thrown + 1))
    return min(1.0, tail / (1 << (thrown - 1))) if thrown else 1.0


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


def metrics(results: Results) -> list[str]:
    """Names of the figures: of the sets that were asked for, of trials themselves, the loss last."""
    names = dict.fromkeys(
        name
        for record in results.records.values()
        for group in record.get("figures", {}).values()
        for name in group
        if name != LOSS
    )
    of_sets = [name for name in names if name.split(" ")[0] in METRICS]
    return [*of_sets, *(name for name in names if name not in of_sets), LOSS]


def figure(results: Results, trial: Trial, group: str, metric: str) -> float | None:
    """One figure, or None if the trial is not made, diverged, or gave no finite one."""
    return _figures(results, trial, group, metric).get(metric)


def cell(results: Results, plan: Plan, method: Method, size: int, group: str, metric: str) -> Cell:
    """All finished trials of a method at a size."""
    trials = _trials(plan, method, size)
    values = [figure(results, trial, group, metric) for trial in trials]
    diverged = sum(_diverged(results, trial) for trial in trials)
    endless = sum(_figures(results, trial, group, metric).get(metric, 0) is None for trial in trials)
    return Cell(tuple(value for value in values if value is not None), len(trials), diverged, endless)


def paired_comparison(
    results: Results,
    plan: Plan,
    first: Method,
    rival: Method,
    group: str,
    metric: str,
    *,
    size: int | None = None,
) -> PairedTest | None:
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
            own_diverged = any(_diverged(results, own) for own, _ in pairs)
            rival_diverged = any(_diverged(results, other) for _, other in pairs)
            if own_diverged != rival_diverged and all(_made(results, *pair) for pair in pairs):
                won, lost = won + rival_diverged, lost + own_diverged
                continue
            figures = [[figure(results, trial, group, metric) for trial in pair] for pair in pairs]
            of_seeds = [sign * (a - b) for a, b in figures if a is not None and b is not None]
            if of_seeds:
                differences.append(statistics.fmean(of_seeds))
    return contrast(differences, won=won, lost=lost) if differences or won or lost else None


def recorded(results: Results, plan: Plan, method: Method, size: int, key: str) -> list[Any]:
    """What the results note of all finished trials of a method at a size, such as `trained`."""
    records = [results.records.get(trial.key, {}) for trial in _trials(plan, method, size)]
    return [record[key] for record in records if record.get(key) is not None]


def all_methods(plan: Plan) -> Sequence[Method]:
    """Those at every size, then the others."""
    return [*plan.methods, *(method for method in plan.others if method not in plan.methods)]


def sizes(plan: Plan) -> list[int]:
    """Numbers of training examples of all trials, in order."""
    return sorted({trial.size for trial in plan.trials()})


def _trials(plan: Plan, method: Method, size: int) -> list[Trial]:
    return [trial for trial in plan.trials() if trial.method == method and trial.size == size]


def _diverged(results: Results, trial: Trial) -> bool:
    return bool(results.records.get(trial.key, {}).get("diverged"))


def _made(results: Results, *trials: Trial) -> bool:
    return all(trial.key in results.records for trial in trials)


def _figures(results: Results, trial: Trial, group: str, metric: str) -> dict[str, float | None]:
    """The figures of a trial among which a metric is; None for one that was not finite."""
    metric_set = metric.split(" ")[0]
    name = score_key(metric_set, trial) if metric_set in METRICS else trial.key
    figures: dict[str, dict[str, float | None]] = results.records.get(name, {}).get("figures", {})
    return figures.get(group, {})
