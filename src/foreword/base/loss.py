"""Losses: the loss of each target token of a batch, under the prefixes of its rows."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from foreword.base.attention import Attending, attending
from foreword.base.batch import Batch
from foreword.base.head_losses import head_losses, plain_head
from foreword.base.prefix_batch import RowPrefixes


def target_losses(model: Any, batch: Batch, prefixes: RowPrefixes | None) -> torch.Tensor:
    """Cross entropy of each target token in nats, `[M]`, float32.

    Logits are computed at the M places that predict a target and nowhere else, where the model
    allows it: over a vocabulary of 49k they cost as much as a fifth of the layers.
    """
    head = plain_head(model)
    with attending(Attending(prefixes=prefixes, layout=batch.layout, answers_from=batch.answers_from)):
        if head is not None:
            hidden_BTI = model.base_model(**batch.inputs, use_cache=False)[0]
            return head_losses(head, hidden_BTI.flatten(0, 1).index_select(0, batch.place_M), batch.target_M)
        if batch.layout is not None and keeps_logits(model):
            logits_MV = model(**batch.inputs, use_cache=False, logits_to_keep=batch.place_M).logits[0]
        else:
            logits_MV = model(**batch.inputs, use_cache=False).logits.flatten(0, 1)[batch.place_M]
    return cross_entropy(logits_MV.float(), batch.target_M, reduction="none")


def keeps_logits(model: Any) -> bool:
    """Whether the model can be told at which places logits are wanted."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters
