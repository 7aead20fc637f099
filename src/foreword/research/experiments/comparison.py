"""Comparison: one thing against another, pair by pair, and what of it chance could have given.

Personalization compares an owner's own prefix with its rivals, owner by owner; experiments with methods
compare these, subset by subset (tally.py).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

CHANCE = 0.05
"""A difference that chance alone would show more often than this counts as open."""


@dataclass(frozen=True)
class Column:
    """One owner's dev examples under every prefix: mean losses per target token, in nats.

    Attributes:
        owner: whose examples.
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
class Contrast:
    """One thing against another, over pairs.

    Attributes:
        mean: of the differences, positive where the first is better; NaN if no pair has one.
        spread: their standard deviation; 0 of fewer than two.
        better, worse, ties: pairs in which the first is better, worse and the same; pairs without a
            difference, because one side has no figure, are among them.
        chance: how often fair coins would favour one side this clearly (two-sided sign test).
    """

    mean: float
    spread: float
    better: int
    worse: int
    ties: int
    chance: float

    @property
    def pairs(self) -> int:
        """How many were compared."""
        return self.better + self.worse + self.ties

    @property
    def verdict(self) -> Verdict:
        """Whether the first is better; `open` where mean and count disagree or may be chance."""
        if self.chance > CHANCE:
            return "open"
        if (self.mean > 0 or math.isnan(self.mean)) and self.better > self.worse:
            return "held"
        return "opposite" if not self.mean >= 0 and self.better < self.worse else "open"


def contrast_own(columns: Sequence[Column], rival: Rival) -> Contrast:
    """The own prefixes against `rival`, over the owners of `columns`: how much lower the loss is, in nats."""
    return contrast([getattr(column, rival) - column.own for column in columns])


def contrast(differences: Sequence[float], *, won: int = 0, lost: int = 0) -> Contrast:
    """Compare by the difference of each pair, positive where the first is better.

    Args:
        won, lost: pairs without a difference, in which the rival, or the first, failed altogether.
    """
    better, worse = sum(d > 0 for d in differences) + won, sum(d < 0 for d in differences) + lost
    return Contrast(
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
