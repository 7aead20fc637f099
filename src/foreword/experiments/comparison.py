"""Comparison: what the losses of every prefix on every owner's dev examples say about own prefixes."""

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
    """Own prefixes against a rival, over owners.

    Attributes:
        rival: what they are compared with.
        mean: of the rival's loss minus the own one's, in nats; positive where own is better.
        spread: standard deviation of that over owners.
        better, worse, ties: owners for whom own has the lower, the higher and the same loss.
        chance: how often fair coins would favour one side this clearly (two-sided sign test).
    """

    rival: Rival
    mean: float
    spread: float
    better: int
    worse: int
    ties: int
    chance: float

    @property
    def verdict(self) -> Verdict:
        """Whether own prefixes are better; `open` where mean and count disagree or may be chance."""
        if self.chance > CHANCE:
            return "open"
        if self.mean > 0 and self.better > self.worse:
            return "held"
        return "opposite" if self.mean < 0 and self.better < self.worse else "open"


def contrast(columns: Sequence[Column], rival: Rival) -> Contrast:
    """Compare the own prefixes with `rival` over the owners of `columns` (two or more)."""
    differences = [getattr(column, rival) - column.own for column in columns]
    better, worse = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    return Contrast(
        rival,
        statistics.fmean(differences),
        statistics.stdev(differences),
        better,
        worse,
        len(differences) - better - worse,
        sign_test(better, worse),
    )


def sign_test(better: int, worse: int) -> float:
    """How often fair coins fall at least this unevenly, to either side; ties are not counted in."""
    thrown = better + worse
    tail = sum(math.comb(thrown, heads) for heads in range(max(better, worse), thrown + 1))
    return min(1.0, tail / (1 << (thrown - 1))) if thrown else 1.0
