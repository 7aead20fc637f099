"""Weights: fine-tuning of all weights, or those of the top layers, of a copy of the base model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from foreword.base.base_model import BaseModel
from foreword.base.compatibility import name
from foreword.base.loading import check_trainable
from foreword.base.loss import target_losses
from foreword.encoding import EncodedExample
from foreword.errors import UnsupportedArchitecture
from foreword.research.baselines.protocol import AdapterInputs, EvaluatedModel, with_weights


class Weights:
    """A model of its own, of which some parameters are trained."""

    def __init__(self, base: BaseModel, model: Any, parameters: Sequence[nn.Parameter]) -> None:
        """`model`: a copy, never the base's own; `parameters` of it are trained."""
        self.base = with_weights(base, model)
        self.template = base.template
        self.parameters = list(parameters)

    def losses(self, rows: Sequence[EncodedExample]) -> torch.Tensor:
        """The loss of each target token, `[M]`."""
        return target_losses(self.base.model, self.base.batch(rows, None, "flat"), None)

    def finish(self) -> EvaluatedModel:
        """The model, frozen as it is now."""
        numbers = sum(parameter.numel() for parameter in self.parameters)
        self.base.model.eval().requires_grad_(False)
        return EvaluatedModel(self.base, trained=numbers, kept=numbers)


def all_weights(inputs: AdapterInputs) -> Weights:
    """Every weight is trained."""
    model = copy_of(inputs.base)
    model.requires_grad_(True)
    return Weights(inputs.base, model, list(model.parameters()))


def top_layers(count: int) -> Callable[[AdapterInputs], Weights]:
    """The last `count` layers are trained, as the paper's FT-top2."""

    def begin(inputs: AdapterInputs) -> Weights:
        model = copy_of(inputs.base)
        blocks = decoder_blocks(model, inputs.base.geometry.streams["decoder"].layers)[-count:]
        for block in blocks:
            block.requires_grad_(True)
        return Weights(inputs.base, model, [weight for block in blocks for weight in block.parameters()])

    return begin


def copy_of(base: BaseModel) -> Any:
    """A model with weights of its own, equal to the base's; nothing that is done to it reaches the base.

    Raises:
        UsageError: weights that are quantised can't be trained.
    """
    check_trainable(base, "fine-tuning")
    return copy.deepcopy(base.model)


def sharing_copy(base: BaseModel) -> Any:
    """A model with modules of its own around the base's own frozen weights, to add parameters to."""
    tensors = [*base.model.parameters(), *base.model.buffers()]
    return copy.deepcopy(base.model, {id(tensor): tensor for tensor in tensors})


def decoder_blocks(model: Any, layers: int) -> list[nn.Module]:
    """The decoder's layers, first to last, each with its attention.

    Raises:
        UnsupportedArchitecture: no list of so many layers is found.
    """

    def has_attention(block: nn.Module) -> bool:
        slots = [getattr(module, "foreword_layer", None) for module in block.modules()]
        return any(slot is not None and slot.stream == "decoder" for slot in slots)

    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) >= layers and all(map(has_attention, module)):
            return list(module)
    raise UnsupportedArchitecture(
        f"{name(model)}: no list of {layers} decoder layers was found; leave the method out"
    )
