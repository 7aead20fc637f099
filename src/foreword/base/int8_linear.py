"""A frozen linear layer with its weight in 8 bits, of which nothing else is rounded.

bitsandbytes' own product rounds activations, too, except for columns in which some row of the batch has a
large number (LLM.int8(), arXiv 2208.07339): a row's result depends on its neighbours then. Here the weight
is made a matrix of the model's data type again for the time of a product: no row notices another, and the
gradient is that of what was computed.

Shapes: I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.nn import Linear8bitLt
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear


def use_rounded_linear(model: Any) -> int:
    """Let every int8 layer of `model` compute so; returns how many."""
    layers = [module for module in model.modules() if type(module) is Linear8bitLt]
    for layer in layers:
        layer.__class__ = RoundedLinear
        if "_old_forward" in vars(layer):  # what the hooks call by which accelerate spreads a model
            layer._old_forward = RoundedLinear.forward.__get__(layer)
    return len(layers)


class RoundedLinear(Linear8bitLt):
    """bitsandbytes' layer, with a product of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., I]` to `[..., O]`, in the type of `x`."""
        if self.weight.CB is not None:
            self.init_8bit_state()  # moves what the layer was loaded with to where it is kept
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if torch.is_grad_enabled() and x.requires_grad:
            return _Product.apply(x, self.state.CB, self.state.SCB, bias)  # type: ignore[no-any-return]
        return linear(x, _weight(self.state.CB, self.state.SCB, x.dtype), bias)


class _Product(torch.autograd.Function):
    """Differentiated by its input alone; keeps the 8 bits for going back, not the matrix made of them."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        rounded_OI: torch.Tensor,
        largest_O: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.rounded_OI, ctx.largest_O = rounded_OI, largest_O
        return linear(x, _weight(rounded_OI, largest_O, x.dtype), bias)

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        weight_OI = _weight(ctx.rounded_OI, ctx.largest_O, gradients[0].dtype)
        return gradients[0] @ weight_OI, None, None, None


def _weight(rounded_OI: torch.Tensor, largest_O: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # 127 stands for the largest number of an output's weights.
    return rounded_OI.to(dtype).mul_(largest_O[:, None] / 127)
