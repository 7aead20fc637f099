"""Timing: ways to do the same work, timed in turns, so that a noisy machine is as noisy for each."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Work = Callable[[int], object]
"""Does the work of one round, whose number it gets."""


@dataclass(frozen=True)
class Spread:
    """Median of several rounds, and quartiles: a quarter of the rounds lies below `low`, and above `high`."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles. Raises ValueError without values."""
    if len(values) < 2:
        return Spread(*[statistics.median(values)] * 3)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high)


@dataclass(frozen=True)
class Turns:
    """Seconds of each way, round by round."""

    seconds: Mapping[str, Sequence[float]]

    def of(self, way: str) -> Spread:
        """Seconds of a round."""
        return spread(self.seconds[way])

    def faster(self, way: str, than: str) -> Spread:
        """How many times as fast as another way, from the ratios of the rounds in which both took part."""
        pairs = zip(self.seconds[way], self.seconds[than], strict=False)
        return spread([other / own for own, other in pairs])


def waiting_for(device: torch.device) -> Callable[[], None]:
    """What returns when a device has done all that it was given: GPUs compute while Python goes on."""
    if device.type == "cuda":
        return functools.partial(torch.cuda.synchronize, device)
    return torch.mps.synchronize if device.type == "mps" else lambda: None


def in_turns(
    ways: Mapping[str, Work],
    rounds: int,
    *,
    fewer: Mapping[str, int] | None = None,
    wait: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    on_round: Callable[[int], None] = lambda number: None,
) -> Turns:
    """Every way once to warm up (round -1), then in turns: A B A B ...

    Args:
        fewer: rounds of ways that are too slow for all.
        wait: see `waiting_for`; called before the clock is read.
        on_round: called with the rounds that are done.
    """
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for work in ways.values():
        work(-1)
    wait()
    for number in range(rounds):
        for way, work in ways.items():
            if number < (fewer or {}).get(way, rounds):
                start_time = clock()
                work(number)
                wait()
                seconds[way].append(clock() - start_time)
        on_round(number + 1)
    return Turns(seconds)
