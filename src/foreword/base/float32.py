"""Computes with a model of 16-bit weights in float32, without a second copy of them.

In 16 bits two ways to compute one thing differ visibly, so a trial of a model could not tell what is wrong
from what is rounded. Inside `in_float32` every operation takes its 16-bit tensors in float32, and what it
makes stays in float32: the numbers are those of the same weights loaded in float32. A weight is widened for
the one operation that reads it, large matrices a part at a time, so that memory grows by `PART` numbers and
not by a model.

This works below torch's Python functions (`TorchDispatchMode`), where all layers of all architectures come
down to the same operations.

Shapes: M rows, I inputs, O outputs, E experts.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from foreword.base.loading import existing_quantization

HALVES = (torch.float16, torch.bfloat16)

PART = 1 << 20
"""Numbers of a weight that are in float32 at once in a matrix product: 4 MB."""

aten = torch.ops.aten

_READING = (aten.embedding.default, aten.index.Tensor, aten.index_select.default, aten.gather.default)
_CONVOLUTIONS = (torch.conv1d, torch.conv2d)


def trial_numbers(model: Any) -> tuple[contextlib.AbstractContextManager[None], float]:
    """What trials of a model are computed in, and which share of a result they overlook as rounded.

    Float32, and none; but kernels of quantised weights other than bitsandbytes' may take nothing but 16 bits.
    A model that has nothing in 16 bits is let compute as it does, which is faster.
    """
    quantization = existing_quantization(model.config)
    tensors = itertools.chain(model.parameters(), model.buffers())
    if quantization is None and not any(tensor.dtype in HALVES for tensor in tensors):
        return contextlib.nullcontext(), 0.0
    foreign = quantization not in (None, "int8", "nf4", "fp4")
    return (contextlib.nullcontext(), 0.05) if foreign and model.dtype in HALVES else (in_float32(), 0.0)


@contextlib.contextmanager
def in_float32() -> Iterator[None]:
    """Inside this block no number is rounded to 16 bits; gradients must be off."""
    with _Convolutions(), _Operations():
        yield


class _Convolutions(TorchFunctionMode):
    """Convolutions compare the types of their arguments before they come down to operations."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _CONVOLUTIONS:
            return func(*_widen(args), **_widen(kwargs or {}))
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if options.get("dtype") in HALVES:  # casts and new tensors
            options["dtype"] = torch.float32
        if any(each.alias_info is not None for each in func._schema.returns):
            if not func._schema.is_mutable:  # a view of a weight: left what it is until it is computed with
                return func(*args, **options)
            written, *others = args  # nothing was made in 16 bits here, but a model can have buffers
            same = isinstance(written, torch.Tensor) and written.dtype in HALVES
            return func(written, *(others if same else _widen(others)), **options)
        if func in _READING:  # a few numbers of a tensor: those are widened, not all
            return _widen(func(*args, **options))
        if func in (aten.mm.default, aten.addmm.default) and args[-1].dtype in HALVES and not options:
            product_MO = _product(*args[-2:])
            return product_MO if len(args) == 2 else product_MO + _widen(args[0])
        if func is aten._grouped_mm.default and args[1].dim() == 3 and args[2] is not None:
            return _grouped_product(*args[:3])
        return func(*_widen(args), **_widen(options))


def _widen(tree: Any) -> Any:
    return tree_map_only(torch.Tensor, lambda each: each.float() if each.dtype in HALVES else each, tree)


def _product(rows_MI: torch.Tensor, weight_IO: torch.Tensor) -> torch.Tensor:
    """A product with a 16-bit weight, of which a part is in float32 at once, small enough for a cache."""
    weight_OI, rows_MI = weight_IO.t(), _widen(rows_MI)  # of linear layers, this is how it lies in memory
    size = max(1, PART // max(1, weight_OI.shape[1]))
    wide_OI = torch.empty_like(weight_OI[:size], dtype=torch.float32)
    parts = [rows_MI @ wide_OI[: len(part)].copy_(part).t() for part in weight_OI.split(size)]
    return torch.cat(parts, dim=1)


def _grouped_product(rows_MI: torch.Tensor, weight_EIO: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
    """Each expert's product with its rows, which end where `ends_E` says."""
    product_MO = rows_MI.new_zeros(rows_MI.shape[0], weight_EIO.shape[2], dtype=torch.float32)
    start = 0
    for expert, end in enumerate(ends_E.tolist()):
        if end > start:
            product_MO[start:end] = _product(rows_MI[start:end], weight_EIO[expert])
        start = end
    return product_MO
