"""How far bfloat16 takes a model from float32 by itself: no prefix, transformers' own code, the same weights.

The measure for what a prefix may add to it. Rounding turns a router's choice here and there, and a token whose
experts are others is far off, with a prefix or without. So a distance is that of the median token (of a gradient:
of the median vector), and the noise in logits is that of the worst of many rows: rows in which many choices turn
are part of it.

Shapes: B rows, T tokens, V vocabulary, E hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from support.stand_ins import VOCABULARY

TEXTS_BT = torch.randint(1, VOCABULARY, (12, 24), generator=torch.Generator().manual_seed(7))
SOURCE = 12
"""Tokens of each text that an encoder reads; those behind are predicted, each from the one in front of it."""


@dataclass(frozen=True)
class Noise:
    """Distances of the plain model in bfloat16 from itself in float32, each as a share of the length in float32.

    Attributes:
        logits: of the median token of the worst row.
        gradients: of a loss, by the embeddings of its texts, at the median token.
    """

    logits: float
    gradients: float


def distances(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Of each vector (the last dimension) from the expected one, as a share of the length of that."""
    expected = expected.float()
    return (found.float() - expected).norm(dim=-1) / expected.norm(dim=-1)


def measure_noise(half: Any, whole: Any) -> Noise:
    """Of a transformers model in bfloat16, beside the same in float32."""
    (logits_BTV, gradients_BTE), (expected_BTV, expected_BTE) = _plain(half), _plain(whole)
    seen_BT = expected_BTE.any(dim=-1)  # under a sliding window, not every token matters to what is predicted
    return Noise(
        float(distances(logits_BTV, expected_BTV).median(dim=1).values.max()),
        float(distances(gradients_BTE[seen_BT], expected_BTE[seen_BT]).median()),
    )


def _plain(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the targets, and the gradient of their loss by all embeddings."""
    embedded: list[torch.Tensor] = []

    def keep(module: nn.Module, given: Any, made: torch.Tensor) -> torch.Tensor:
        embedded.append(made.detach().requires_grad_())
        return embedded[-1].clone()  # which CTRL changes in place

    size = model.get_input_embeddings().weight.shape
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m.weight.shape == size]
    handles = [table.register_forward_hook(keep) for table in tables]
    source_BT, begun_BT, target_BT = TEXTS_BT[:, :SOURCE], TEXTS_BT[:, SOURCE:-1], TEXTS_BT[:, SOURCE + 1 :]
    try:
        if model.config.is_encoder_decoder:
            logits_BTV = model(input_ids=source_BT, decoder_input_ids=begun_BT, use_cache=False).logits
        else:
            logits_BTV = model(input_ids=TEXTS_BT[:, :-1], use_cache=False).logits[:, SOURCE:]
    finally:
        for handle in handles:
            handle.remove()
    losses = cross_entropy(logits_BTV.flatten(0, 1).float(), target_BT.flatten())
    gradients = torch.autograd.grad(losses, embedded)
    return logits_BTV.detach(), torch.cat(gradients, dim=1)
