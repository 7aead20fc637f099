"""Bottleneck adapters: a small network behind every layer of a copy of the model.

One in each layer, as Pfeiffer et al. (2021) have it, where Houlsby et al. (2019) have two: with y the output
of a layer, y + W_up relu(W_down y + b_down) + b_up. Where a layer's norms stand before its parts (all but a
few old models), that is the adapters library's `SeqBnConfig`. The library needs transformers below 5, so the
network is ours; tests compare its logits and gradients with those that the library computed.

Shapes: B batch, T tokens, E embedding size, K width of the bottleneck.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from foreword.base.base_model import BaseModel
from foreword.research.baselines.fine_tuning import Weights, decoder_blocks, sharing_copy
from foreword.research.baselines.protocol import AdapterInputs, check_decoder_only

SPREAD = 0.02
"""Standard deviation of the weights at the start, as in the adapters library (`init_weights="bert"`)."""


class Bottleneck(nn.Module):
    """Down to K numbers, ReLU, and up again, added to what came in."""

    def __init__(self, size: int, width: int, generator: torch.Generator) -> None:
        """`size`: E; `width`: K."""
        super().__init__()
        # Not drawn by torch, whose global generator is other people's.
        self.down = nn.utils.skip_init(nn.Linear, size, width)
        self.up = nn.utils.skip_init(nn.Linear, width, size)
        with torch.no_grad():
            for linear in (self.down, self.up):
                linear.weight.normal_(0.0, SPREAD, generator=generator)
                linear.bias.zero_()

    def forward(self, hidden_BTE: torch.Tensor) -> torch.Tensor:
        """`[B, T, E]` to `[B, T, E]`."""
        given_BTE = hidden_BTE.to(self.down.weight.dtype)
        added_BTE: torch.Tensor = self.up(torch.relu(self.down(given_BTE)))
        return hidden_BTE + added_BTE.to(hidden_BTE.dtype)


def bottleneck_adapter(inputs: AdapterInputs, width: int | None = None) -> Weights:
    """Bottlenecks of `width` numbers (K); None: as wide as the prefix's number of parameters allows."""
    base = inputs.base
    check_decoder_only(base, "bottleneck adapters")
    size, model = hidden_size(base), sharing_copy(base)
    generator = torch.Generator().manual_seed(inputs.seed)
    parameters: list[nn.Parameter] = []
    for block in decoder_blocks(model, base.geometry.streams["decoder"].layers):
        device = next(block.parameters()).device  # of a model on several devices, each layer has its own
        bottleneck = Bottleneck(size, width or equal_width(base, inputs.length), generator).to(device)
        block.add_module("bottleneck", bottleneck)
        block.register_forward_hook(_behind)
        parameters += bottleneck.parameters()
    return Weights(base, model, parameters)


def equal_width(base: BaseModel, length: int) -> int:
    """The largest K at which the adapters have no more parameters than a prefix of `length`; at least 1."""
    size, layers = hidden_size(base), base.geometry.streams["decoder"].layers
    per_layer = int(base.geometry.parameters(length)) // layers
    return max(1, (per_layer - size) // (2 * size + 1))  # K (2 E + 1) + E numbers in a layer


def hidden_size(base: BaseModel) -> int:
    """E, of what goes from layer to layer."""
    return int(base.model.config.get_text_config().hidden_size)


def _behind(block: Any, _given: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (block.bottleneck(output[0]), *output[1:])
    return block.bottleneck(output)
