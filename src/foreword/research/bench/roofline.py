"""Roofline: the operations that work with frozen weights needs, and what the machine can do at most.

So that a figure is also a share of the limit. A product of a weight `[O, I]` with one token is 2·O·I
operations forward, and as many backward for the gradient of its input; a frozen weight needs no gradient of
its own, which saves the third that is usual (2, 4 and 6 operations per weight and token: Kaplan et al. 2020,
section 2.1, counts 2 forward and 4 backward). Attention of a token to one key is 4·D operations of each head
forward (query by key, weight by value) and 8·D backward. Logits are counted where there is a target, padding
nowhere. Softmax, norms and activations are not counted: they are not matrix products. It is the work of rows
that share nothing: what rows begin with in common, Foreword computes once, and its share of the limit is so
much the higher.

Shapes: M tokens, I inputs, O outputs of a linear layer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from foreword.base.base_model import BaseModel
from foreword.encoding import EncodedExample
from foreword.errors import UnsupportedArchitecture
from foreword.research.bench.timing import Spread, Work, in_turns, spread, waiting_for

OVERLOOKED = 0.01
"""Share of a model's matrices that may belong to no product that is counted here: small convolutions."""


@dataclass(frozen=True)
class Sizes:
    """What is timed to find a device's limits.

    Attributes:
        square: side of the matrices: large enough that a product is all arithmetic.
        copied: bytes: more than any cache holds.
        copies: in one timing, so that what a call costs does not count.
        enough: operations of one timing: tens of milliseconds on a CPU of today, some on a GPU.
    """

    square: int
    copied: int
    copies: int
    enough: float


SIZES = {"cpu": Sizes(2048, 1 << 28, 1, 4e9), "other": Sizes(8192, 1 << 30, 10, 4e12)}
"""By kind of device."""

MOST_REPEATS = 200
"""Of small products, whose time is that of the call."""

SQUARES, COPYING = "squares", "copying"


def training_step(base: BaseModel, rows: Sequence[EncodedExample], length: int) -> int:
    """Operations of one step of a decoder-only base behind prefixes of `length` (P).

    The backward pass of the first layer's inputs is counted, though nothing needs it: less than a
    hundredth of the whole in a model of thirty layers.
    """
    return 3 * _attention(base, [row.tokens for row in rows], length) + 2 * _products(
        base, sum(row.tokens for row in rows), sum(len(row.target_ids) for row in rows)
    )


def generation(base: BaseModel, prompts: Sequence[int], length: int, new_tokens: int) -> int:
    """Operations of `new_tokens` after prompts of so many tokens each, behind prefixes of `length` (P).

    Keys and values are cached, and the last new token is read by nobody.
    """
    read = [tokens + new_tokens - 1 for tokens in prompts]
    return _attention(base, read, length) + _products(base, sum(read), new_tokens * len(prompts))


def weight_bytes(base: BaseModel) -> int:
    """What one forward pass has to read at least: every weight of a product, once."""
    return sum(weight.nbytes for weight in [*_weights(base), _head(base)])


def weights_of(base: BaseModel) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules of all products but the logits."""
    head = base.model.get_output_embeddings()
    for name, module in base.model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            yield name, module


def check_countable(base: BaseModel) -> None:
    """See that the model's weights are those of products that are counted here.

    Raises:
        UnsupportedArchitecture: they are not, as those of experts that only some tokens meet.
    """
    embeddings = (m.weight for m in base.model.modules() if isinstance(m, nn.Embedding))
    counted = {id(weight) for weight in (*_weights(base), _head(base), *embeddings)}
    numbers = {
        id(p): p.numel() for p in base.model.parameters() if p.dim() > 1
    }  # norms and biases are vectors
    missed = sum(number for own, number in numbers.items() if own not in counted)
    if missed > OVERLOOKED * sum(numbers.values()):
        raise UnsupportedArchitecture(
            f"{base.name}: {missed} of {sum(numbers.values())} weights belong to no linear layer, so what "
            "they compute can't be counted; take a base whose every token meets the same linear layers"
        )


def _products(base: BaseModel, texts: int, targets: int) -> int:
    inner = sum(int(weight.numel()) for weight in _weights(base))
    return 2 * inner * texts + 2 * int(_head(base).numel()) * targets


def _attention(base: BaseModel, texts: Sequence[int], length: int) -> int:
    config = base.model.config.get_text_config(decoder=True)
    geometry = base.geometry.streams["decoder"]
    pairs = sum(tokens * (tokens + 1) // 2 + tokens * length for tokens in texts)
    sizes = sum(key_dim + value_dim for _, key_dim, value_dim in geometry.by_layer)
    return int(2 * sizes * config.num_attention_heads * pairs)


def _weights(base: BaseModel) -> list[Any]:
    return [module.weight for _, module in weights_of(base)]


def _head(base: BaseModel) -> Any:
    return base.model.get_output_embeddings().weight


@dataclass(frozen=True)
class Limits:
    """Floating-point operations a second, in products of large square matrices; and bytes a second, read and
    written, in copying memory."""

    flops: float
    bandwidth: float


SHAPE_COLUMNS = ("layers", "shape", "count", "forward, GFLOP/s", "backward, GFLOP/s", "share of squares")
"""Of a row of figures: names of linear layers of one shape, without the places, the shape (outputs x inputs),
how many the model has, operations a second of outputs and of gradients of inputs, the share of the rate of
large square products in the same round, forward and backward together."""


def measure(dtype: torch.dtype, device: torch.device, rounds: int = 5) -> Limits:
    """Medians of several rounds, with the threads that torch has now."""
    square, operations = products(dtype, device, count=1)
    copying, moved = copies(device)
    turns = in_turns({SQUARES: square, COPYING: copying}, rounds, wait=waiting_for(device))
    return Limits(operations / turns.of(SQUARES).median, moved / turns.of(COPYING).median)


def sizes_for(device: torch.device) -> Sizes:
    """What is timed on a device of its kind."""
    return SIZES.get(device.type, SIZES["other"])


def products(dtype: torch.dtype, device: torch.device, count: int = 10) -> tuple[Work, int]:
    """Work that is products of large square matrices alone, and its operations: the limit in each round."""
    square = sizes_for(device).square
    one, two = (torch.randn(square, square, device=device).to(dtype) for _ in range(2))

    def work(number: int) -> None:
        for _ in range(count):
            torch.mm(one, two)

    return work, count * 2 * square**3


def copies(device: torch.device) -> tuple[Work, int]:
    """Work that copies memory alone, and how many bytes it reads and writes."""
    sizes = sizes_for(device)
    source = torch.ones(sizes.copied // 4, device=device)
    target = torch.empty_like(source)

    def work(number: int) -> None:
        for _ in range(sizes.copies):
            target.copy_(source)

    return work, 2 * sizes.copies * sizes.copied


def at_shapes(
    base: BaseModel, tokens: int, rounds: int, *, on_round: Callable[[int], None]
) -> tuple[list[tuple[Any, ...]], Spread, Spread]:
    """Products of the model's own weights with M = `tokens` tokens, in turns with those of large squares.

    A product takes another layer's weight each time, as in a pass: no cache holds the one it needs.

    Returns:
        A row of figures (`SHAPE_COLUMNS`) of each shape, of a pass through all of them, were there nothing
        else to do, and of the squares; GFLOP/s in products of large squares; GB/s, read and written, in
        copying.
    """
    shapes, sizes = _by_shape(base), sizes_for(base.device)
    works: dict[str, Work] = {}
    operations: dict[str, int] = {}
    for (outputs, inputs), layers in shapes.items():
        states_MI, gradient_MO = (
            torch.randn(tokens, size, device=base.device, dtype=base.dtype) for size in (inputs, outputs)
        )
        weights = [weight_OI for _, weight_OI in layers]
        repeats = min(MOST_REPEATS, max(1, round(sizes.enough / (2 * tokens * inputs * outputs))))
        for way, factor, transposed in (("forward", states_MI, True), ("backward", gradient_MO, False)):
            name = f"{way} {outputs} {inputs}"
            works[name] = _repeated(factor, weights, repeats, transposed=transposed)
            operations[name] = repeats * 2 * tokens * inputs * outputs
    works[SQUARES], operations[SQUARES] = products(base.dtype, base.device, count=2)
    works[COPYING], moved = copies(base.device)
    with torch.inference_mode():
        turns = in_turns(works, rounds, wait=waiting_for(base.device), on_round=on_round)
    rates = {
        name: [operations[name] / each / 1e9 for each in turns.seconds[name]]
        for name in works
        if name != COPYING
    }
    figures: list[tuple[Any, ...]] = []
    passes = [0.0] * rounds
    for (outputs, inputs), layers in shapes.items():
        forward, backward = (rates[f"{way} {outputs} {inputs}"] for way in ("forward", "backward"))
        of_both = [2 / (1 / one + 1 / two) for one, two in zip(forward, backward, strict=True)]
        for number, rate in enumerate(of_both):
            passes[number] += len(layers) * inputs * outputs / rate
        names = ", ".join(dict.fromkeys(name for name, _ in layers))
        share = _shares(of_both, rates[SQUARES])
        shape = f"{outputs} x {inputs}"
        figures.append((names, shape, len(layers), spread(forward), spread(backward), share))
    numbers = sum(len(layers) * inputs * outputs for (outputs, inputs), layers in shapes.items())
    together = _shares([numbers / each for each in passes], rates[SQUARES])
    squares = spread(rates[SQUARES])
    figures.append(("all of them once, forward and backward", None, None, None, None, together))
    figures.append(("squares", f"{sizes.square} x {sizes.square}", None, squares, None, None))
    return figures, squares, spread([moved / each / 1e9 for each in turns.seconds[COPYING]])


def _by_shape(base: BaseModel) -> dict[tuple[int, int], list[tuple[str, torch.Tensor]]]:
    """Of each shape (O, I) the layers' names and their weights `[O, I]`; the logits' is among them."""
    by_shape: dict[tuple[int, int], list[tuple[str, torch.Tensor]]] = {}
    head: Any = base.model.get_output_embeddings()
    for name, module in [*weights_of(base), ("logits", head)]:
        weight: Any = module.weight.detach()
        weight_OI = weight if isinstance(module, nn.Linear) else weight.T  # GPT-2's keeps [I, O]
        shape = (int(weight_OI.shape[0]), int(weight_OI.shape[1]))
        by_shape.setdefault(shape, []).append((name.rpartition(".")[2], weight_OI))
    return by_shape


def _repeated(
    factor: torch.Tensor, weights_OI: Sequence[torch.Tensor], repeats: int, *, transposed: bool
) -> Work:
    def work(number: int) -> None:
        for weight in itertools.islice(itertools.cycle(weights_OI), repeats):
            torch.mm(factor, weight.T if transposed else weight)

    return work


def _shares(rates: Sequence[float], of: Sequence[float]) -> Spread:
    return spread([rate / limit for rate, limit in zip(rates, of, strict=True)])
