"""The machine: what it can do at most, so that a figure is also a share of the limit.

Letters: M tokens, I inputs, O outputs of a linear layer.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from foreword.base.base_model import BaseModel
from foreword.research.bench import flops
from foreword.research.bench.timing import Spread, Work, in_turns, spread

SQUARE = 2048
"""Side of the matrices: large enough that a product is all arithmetic."""

COPIED = 1 << 28
"""Bytes: more than any cache holds."""

ENOUGH = 4e9
"""Operations of one timing: tens of milliseconds on a CPU of today."""

MOST_REPEATS = 200
"""Of small products, whose time is that of the call."""

SQUARES, COPYING = "squares", "copying"


@dataclass(frozen=True)
class Limits:
    """What was measured.

    Attributes:
        flops: floating-point operations a second, in products of large square matrices.
        bandwidth: bytes a second, read and written, in copying memory.
    """

    flops: float
    bandwidth: float


@dataclass(frozen=True)
class ProductFigures:
    """Linear layers of one shape.

    Attributes:
        layers: their names, without the places.
        outputs, inputs: their shape.
        count: how many the model has.
        forward, backward: operations a second of outputs, and of gradients of inputs.
        share: of the rate of large square products in the same round, forward and backward together.
    """

    layers: str
    outputs: int
    inputs: int
    count: int
    forward: Spread
    backward: Spread
    share: Spread


@dataclass(frozen=True)
class MachineFigures:
    """What the machine can do for a model.

    Attributes:
        squares: operations a second in products of large square matrices.
        copying: bytes a second, read and written.
        shapes: of each shape of linear layers.
        together: the share that a pass through all of them has, were there nothing else to do.
    """

    squares: Spread
    copying: Spread
    shapes: Sequence[ProductFigures]
    together: Spread


def measure(dtype: torch.dtype, device: torch.device, rounds: int = 5) -> Limits:
    """Medians of several rounds, with the threads that torch has now."""
    square, operations = products(dtype, device, count=1)
    product = _seconds(lambda: square(0), rounds)
    copying = copies(device)
    return Limits(flops=operations / product, bandwidth=2 * COPIED / _seconds(lambda: copying(0), rounds))


def products(dtype: torch.dtype, device: torch.device, count: int = 10) -> tuple[Work, int]:
    """Work that is products of large square matrices alone, and its operations: the limit in each round."""
    one, two = (torch.randn(SQUARE, SQUARE).to(device, dtype) for _ in range(2))

    def work(number: int) -> None:
        for _ in range(count):
            torch.mm(one, two)
        _wait(device)

    return work, count * 2 * SQUARE**3


def copies(device: torch.device) -> Work:
    """Work that copies `COPIED` bytes once."""
    source = torch.ones(COPIED // 4, device=device)
    target = torch.empty_like(source)

    def work(number: int) -> None:
        target.copy_(source)
        _wait(device)

    return work


def at_shapes(
    base: BaseModel, tokens: int, rounds: int, *, on_round: Callable[[int], None] = lambda number: None
) -> MachineFigures:
    """Products of the model's own weights with M = `tokens` tokens, in turns with those of large squares.

    A product takes another layer's weight each time, as in a pass: no cache holds the one it needs.
    """
    shapes = _by_shape(base)
    works: dict[str, Work] = {}
    operations: dict[str, int] = {}
    for (outputs, inputs), layers in shapes.items():
        states_MI, gradient_MO = (
            torch.randn(tokens, size, device=base.device, dtype=base.dtype) for size in (inputs, outputs)
        )
        weights = [weight_OI for _, weight_OI in layers]
        repeats = min(MOST_REPEATS, max(1, round(ENOUGH / (2 * tokens * inputs * outputs))))
        for way, factor, transposed in (("forward", states_MI, True), ("backward", gradient_MO, False)):
            name = f"{way} {outputs} {inputs}"
            works[name] = _repeated(factor, weights, repeats, transposed=transposed)
            operations[name] = repeats * 2 * tokens * inputs * outputs
    works[SQUARES], operations[SQUARES] = products(base.dtype, base.device, count=2)
    works[COPYING] = copies(base.device)
    with torch.inference_mode():
        turns = in_turns(works, rounds, on_round=on_round)
    rates = {
        name: [operations[name] / each for each in turns.seconds[name]] for name in works if name != COPYING
    }
    found, passes = [], [0.0] * rounds
    for (outputs, inputs), layers in shapes.items():
        forward, backward = (rates[f"{way} {outputs} {inputs}"] for way in ("forward", "backward"))
        of_both = [2 / (1 / one + 1 / two) for one, two in zip(forward, backward, strict=True)]
        for number, rate in enumerate(of_both):
            passes[number] += len(layers) * inputs * outputs / rate
        names = dict.fromkeys(name for name, _ in layers)
        found.append(
            ProductFigures(
                ", ".join(names),
                outputs,
                inputs,
                len(layers),
                spread(forward),
                spread(backward),
                _shares(of_both, rates[SQUARES]),
            )
        )
    numbers = sum(len(layers) * inputs * outputs for (outputs, inputs), layers in shapes.items())
    return MachineFigures(
        squares=spread(rates[SQUARES]),
        copying=spread([2 * COPIED / each for each in turns.seconds[COPYING]]),
        shapes=found,
        together=_shares([numbers / each for each in passes], rates[SQUARES]),
    )


def _by_shape(base: BaseModel) -> dict[tuple[int, int], list[tuple[str, torch.Tensor]]]:
    """Of each shape (O, I) the layers' names and their weights `[O, I]`; the logits' is among them."""
    found: dict[tuple[int, int], list[tuple[str, torch.Tensor]]] = {}
    head: Any = base.model.get_output_embeddings()
    for name, module in [*flops.weights_of(base), ("logits", head)]:
        weight: Any = module.weight.detach()
        weight_OI = weight if isinstance(module, nn.Linear) else weight.T  # GPT-2's keeps [I, O]
        shape = (int(weight_OI.shape[0]), int(weight_OI.shape[1]))
        found.setdefault(shape, []).append((name.rpartition(".")[2], weight_OI))
    return found


def _repeated(
    factor: torch.Tensor, weights_OI: Sequence[torch.Tensor], repeats: int, *, transposed: bool
) -> Work:
    def work(number: int) -> None:
        for weight in itertools.islice(itertools.cycle(weights_OI), repeats):
            torch.mm(factor, weight.T if transposed else weight)
        _wait(factor.device)

    return work


def _shares(rates: Sequence[float], of: Sequence[float]) -> Spread:
    return spread([rate / limit for rate, limit in zip(rates, of, strict=True)])


def _wait(device: torch.device) -> None:
    """GPUs compute while Python goes on; a clock has to wait for them."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(work: Callable[[], object], rounds: int) -> float:
    taken = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return sorted(taken[1:])[rounds // 2]
