"""The machine: what it can do at most, so that a figure is also a share of the limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from foreword.bench.rounds import Work

SQUARE = 2048
"""Side of the matrices: large enough that a product is all arithmetic."""

COPIED = 1 << 28
"""Bytes: more than any cache holds."""


@dataclass(frozen=True)
class Limits:
    """What was measured.

    Attributes:
        flops: floating-point operations a second, in products of large square matrices.
        bandwidth: bytes a second, read and written, in copying memory.
    """

    flops: float
    bandwidth: float


def measure(dtype: torch.dtype, device: torch.device, rounds: int = 5) -> Limits:
    """Medians of several rounds, with the threads that torch has now."""
    one = torch.randn(SQUARE, SQUARE).to(device, dtype)
    two = torch.randn(SQUARE, SQUARE).to(device, dtype)
    source = torch.ones(COPIED // 4, device=device)
    target = torch.empty_like(source)
    product = _seconds(lambda: torch.mm(one, two), device, rounds)
    copy = _seconds(lambda: target.copy_(source), device, rounds)
    return Limits(flops=2 * SQUARE**3 / product, bandwidth=2 * COPIED / copy)


def products(dtype: torch.dtype, device: torch.device, count: int = 10) -> tuple[Work, int]:
    """Work that is products of large square matrices alone, and its operations: the limit in each round."""
    one, two = (torch.randn(SQUARE, SQUARE).to(device, dtype) for _ in range(2))

    def work(number: int) -> None:
        for _ in range(count):
            torch.mm(one, two)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return work, count * 2 * SQUARE**3


def _seconds(work: Callable[[], object], device: torch.device, rounds: int) -> float:
    taken = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - begun)
    return sorted(taken[1:])[rounds // 2]
