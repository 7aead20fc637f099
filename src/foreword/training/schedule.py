"""Schedule: linear warm-up, then linear decay to zero (Li & Liang 2021, without their step at zero)."""

from __future__ import annotations


def rate_factor(step: int, *, warmup: int, steps: int) -> float:
    """Share of the learning rate for optimiser step `step`, counted from 0.

    The first step of a warm-up is not wasted on a rate of zero, nor is the last of the decay.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (steps - step) / max(1, steps - warmup)
