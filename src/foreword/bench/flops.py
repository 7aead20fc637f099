"""FLOPs: what a training step with frozen weights has to compute, counted on real tokens.

A product of a weight `[O, I]` with one token is 2·O·I operations forward, and as many backward for the
gradient of its input; a frozen weight needs no gradient of its own, which saves the third that is usual
(2, 4 and 6 operations per weight and token: Kaplan et al. 2020, section 2.1, counts 2 forward and 4
backward). Attention of a token to one key is 4·D operations of each head forward (query by key, weight by
value) and 8·D backward. Logits are counted where there is a target, padding nowhere. Softmax, norms and
activations are not counted: they are not matrix products. It is the work of rows that share nothing: what
rows begin with in common, Foreword computes once, and its share of the limit is so much the higher.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from foreword.base import BaseModel
from foreword.encoding import EncodedExample


def training_step(base: BaseModel, rows: Sequence[EncodedExample], length: int) -> int:
    """Operations of one step of a decoder-only base behind prefixes of `length` (P).

    The backward pass of the first layer's inputs is counted, though nothing needs it: less than a
    hundredth of the whole in a model of thirty layers.
    """
    return 3 * _attention(base, rows, length) + 2 * _products(base, rows)


def _products(base: BaseModel, rows: Sequence[EncodedExample]) -> int:
    head = base.model.get_output_embeddings()
    inner = sum(
        module.weight.numel()
        for module in base.model.modules()
        if isinstance(module, nn.Linear) and module is not head
    )
    texts = sum(row.tokens for row in rows)
    targets = sum(len(row.target_ids) for row in rows)
    return 2 * inner * texts + 2 * _numbers(head) * targets


def _attention(base: BaseModel, rows: Sequence[EncodedExample], length: int) -> int:
    config = base.model.config.get_text_config(decoder=True)
    geometry = base.geometry.streams["decoder"]
    pairs = sum(row.tokens * (row.tokens + 1) // 2 + row.tokens * length for row in rows)
    sizes = geometry.key_dim + geometry.value_dim
    return int(2 * sizes * config.num_attention_heads * geometry.layers * pairs)


def _numbers(head: nn.Module) -> int:
    weight = head.weight
    assert isinstance(weight, torch.Tensor)
    return weight.numel()
