"""Cross entropy of each target token of a batch, computed from hidden states a part of the rows at a time.

Over a large vocabulary the logits of a batch take more memory than all layers of a small model, three times
over: themselves, their logarithms, and their gradient. A frozen head needs none of them kept. The gradient of
a row's loss by its hidden state is known as soon as the loss is, so each part is done with, forward and
backward, before the next begins, and memory does not grow with rows times vocabulary (as in the fused losses
of Liger-Kernel and Cut Your Losses, arXiv 2411.09009).

Shapes: M rows, C rows of a part, I hidden size, V vocabulary, K tokens of a soft target.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, log_softmax

from foreword.base.attention import AttentionContext, attention_context
from foreword.base.batch import Batch, take
from foreword.base.device_memory import logits_at_once
from foreword.base.prefix_batch import PrefixBatch
from foreword.base.prepacked_linear import PrepackedLinear
from foreword.errors import NotFinite

PART = 1 << 23
"""Logits at once (32 MB in float32): enough rows to keep a CPU's matrix product busy. On a GPU see
`logits_at_once`."""


def detect_linear_head(model: Any) -> None:
    """Set `foreword_plain_head` on `model`: whether its logits are its head's product and nothing more.

    Some scale them, or cap them, or read other states than the inner model returns. One pass over two
    tokens tells; such models compute their own logits.
    """
    head = model.get_output_embeddings()
    model.foreword_plain_head = False
    if type(head) not in (nn.Linear, PrepackedLinear) or type(head.weight) is not nn.Parameter:  # quantised
        return
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = head.register_forward_hook(lambda module, given, made: seen.append((given[0], made)))
    ids = torch.tensor([[0, 1]], device=model.get_input_embeddings().weight.device)
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})
    try:
        with torch.no_grad():
            logits = model(**inputs, use_cache=False).logits
            hidden = model.base_model(**inputs, use_cache=False)[0]
    finally:
        handle.remove()
    # Compared on the CPU: of a model that is spread over several, accelerate moves the logits to the first.
    model.foreword_plain_head = len(seen) == 1 and all(
        torch.equal(one.cpu(), other.cpu()) for one, other in zip(seen[0], (hidden, logits), strict=True)
    )


def plain_head(model: Any) -> nn.Linear | None:
    """The head whose product the logits are, if nobody trains or wraps it; else None.

    accelerate wraps it in a model that is spread over devices, and then moves its input; where it fetches the
    weight for each pass, too, the model computes its own logits.
    """
    if not getattr(model, "foreword_plain_head", False):
        return None
    head = model.get_output_embeddings()
    if type(head) not in (nn.Linear, PrepackedLinear):
        return None
    if "forward" in vars(head) and getattr(getattr(head, "_hf_hook", None), "offload", True):
        return None
    return None if any(parameter.requires_grad for parameter in head.parameters()) else head


@dataclass(frozen=True)
class SoftTargets:
    """For each of M places K tokens and their weights, such as the likeliest of another distribution.

    Attributes:
        ids_MK: token ids.
        weights_MK: float32, not negative; zero where a place has fewer.
    """

    ids_MK: torch.Tensor
    weights_MK: torch.Tensor


def head_losses(
    head: nn.Linear, hidden_MI: torch.Tensor, target_M: torch.Tensor, soft: SoftTargets | None = None
) -> torch.Tensor:
    """Cross entropy of each row's target in nats, `[M]`, float32; `head` is frozen and linear.

    Args:
        soft: what to take the cross entropy with, instead of the targets.
    """
    if soft is None:
        ids_M1 = target_M[:, None]
        soft = SoftTargets(ids_M1, torch.ones_like(ids_M1, dtype=torch.float32))
    if torch.is_grad_enabled() and hidden_MI.requires_grad:
        losses_M: torch.Tensor = _HeadLosses.apply(hidden_MI, soft.ids_MK, soft.weights_MK, head)
        return losses_M
    with torch.no_grad():
        parts = [_part(head, *part) for part in _parts(head, hidden_MI, soft.ids_MK, soft.weights_MK)]
    return torch.cat([losses_C for losses_C, _ in parts])


class _HeadLosses(torch.autograd.Function):
    """The losses, differentiated by the hidden states alone."""

    @staticmethod
    def forward(
        ctx: Any, hidden_MI: torch.Tensor, ids_MK: torch.Tensor, weights_MK: torch.Tensor, head: nn.Linear
    ) -> torch.Tensor:
        weight_VI = head.weight
        losses, gradients = [], []
        for hidden_CI, ids_CK, weights_CK in _parts(head, hidden_MI, ids_MK, weights_MK):
            losses_C, log_CV = _part(head, hidden_CI, ids_CK, weights_CK)
            # The gradient of cross entropy by the logits: probabilities, as often as there is weight, less
            # the weights at their tokens.
            slope_CV = log_CV.exp_().mul_(weights_CK.sum(1, keepdim=True))
            slope_CV.scatter_add_(1, ids_CK, -weights_CK)
            losses.append(losses_C)
            gradients.append(slope_CV.to(weight_VI.dtype) @ weight_VI)
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (slope_MI,) = ctx.saved_tensors  # known since the forward pass: only scaled by what comes in
        return slope_MI * gradients[0][:, None].to(slope_MI.dtype), None, None, None


def _parts(head: nn.Linear, *states: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """What each part has of tensors of M rows, as even as can be."""
    rows, vocabulary = len(states[0]), head.weight.shape[0]
    count = max(1, -(-rows * vocabulary // (logits_at_once(head.weight.device) or PART)))
    size = max(1, -(-rows // count))
    return list(zip(*(each.split(size) for each in states), strict=True))


def _part(
    head: nn.Linear, hidden_CI: torch.Tensor, ids_CK: torch.Tensor, weights_CK: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses `[C]` and log probabilities `[C, V]`, both float32."""
    log_CV = log_softmax(head(hidden_CI), dim=-1, dtype=torch.float32)
    return -(log_CV.gather(1, ids_CK) * weights_CK).sum(1), log_CV


def target_losses(
    model: Any, batch: Batch, prefixes: PrefixBatch | None, soft: SoftTargets | None = None
) -> torch.Tensor:
    """Cross entropy of each target token in nats, `[M]`, float32.

    Args:
        soft: what to take the cross entropy with at each target token's place, instead of that token.
    """
    head, states = _at_targets(model, batch, prefixes)
    target_M = batch.target_M.to(states.device)
    if soft is not None:
        soft = SoftTargets(soft.ids_MK.to(states.device), soft.weights_MK.to(states.device))
    if head is not None:
        return head_losses(head, states, target_M, soft)
    if soft is None:
        return cross_entropy(states.float(), target_M, reduction="none")
    log_MV = log_softmax(states.float(), dim=-1)
    return -(log_MV.gather(1, soft.ids_MK) * soft.weights_MK).sum(1)


@torch.no_grad()
def likeliest_tokens(model: Any, batch: Batch, prefixes: PrefixBatch | None, count: int) -> SoftTargets:
    """The `count` likeliest tokens at each target token's place, and their probabilities, on the CPU."""
    head, states = _at_targets(model, batch, prefixes)
    found = []
    for (states_C,) in [(states,)] if head is None else _parts(head, states):
        logits_CV = (states_C if head is None else head(states_C)).float()
        found.append(torch.softmax(logits_CV, dim=-1).topk(min(count, logits_CV.shape[-1])))
    return SoftTargets(
        torch.cat([each.indices for each in found]).cpu(), torch.cat([each.values for each in found]).cpu()
    )


@torch.no_grad()
def divergences(
    model: Any,
    batch: Batch,
    prefixes: PrefixBatch | None,
    other: Batch,
    other_prefixes: PrefixBatch | None,
) -> torch.Tensor:
    """KL(first || second) at each target token's place, in nats over the whole vocabulary: `[M]`, float32.

    The two batches have the same targets behind different text or prefixes.
    """
    head, states = _at_targets(model, batch, prefixes)
    other_head, other_states = _at_targets(model, other, other_prefixes)
    pairs = [(states, other_states)] if head is None else _parts(head, states, other_states)
    found = []
    for ours, theirs in pairs:
        logits_CV = ours if head is None else head(ours)
        other_CV = theirs if other_head is None else other_head(theirs)
        log_CV = log_softmax(logits_CV, dim=-1, dtype=torch.float32)
        other_log_CV = log_softmax(other_CV, dim=-1, dtype=torch.float32)
        found.append((log_CV.exp() * (log_CV - other_log_CV)).sum(1))
    return torch.cat(found)


def _at_targets(
    model: Any, batch: Batch, prefixes: PrefixBatch | None
) -> tuple[nn.Linear | None, torch.Tensor]:
    """The head and hidden states `[M, I]` at the places that predict a target; or None and logits `[M, V]`.

    Logits are computed at the M places that predict a target and nowhere else, where the model
    allows it: over a vocabulary of 49k they cost as much as a fifth of the layers.
    """
    head = plain_head(model)
    context = AttentionContext(
        prefixes=prefixes,
        layout=batch.layout,
        target_starts=batch.target_starts,
        last_positions=batch.last_positions,
    )
    rows, queries = batch.inputs["input_ids"].shape
    if batch.layout is not None:
        rows, queries = batch.layout.rows, batch.layout.longest
    context.prepare(rows, queries, batch.logit_index_M.device)
    with attention_context(context):
        if head is not None:
            hidden_BTI = model.base_model(**batch.inputs, use_cache=False)[0]
            hidden_MI = take(hidden_BTI.flatten(0, 1), batch.logit_index_M.to(hidden_BTI.device))
            return head, hidden_MI.to(head.weight.device)
        if batch.layout is not None and keeps_logits(model):
            # Of each place once, though it may predict targets of several rows.
            kept_K: torch.Tensor | list[int] = batch.logit_places_K
            if len(getattr(model, "hf_device_map", ())) > 1:
                # accelerate would move a tensor to the first device, and the states are on the last.
                kept_K = batch.logit_places_K.tolist()
            logits_KV = model(**batch.inputs, use_cache=False, logits_to_keep=kept_K).logits[0]
            place_M = torch.searchsorted(batch.logit_places_K, batch.logit_index_M)
            return None, take(logits_KV, place_M.to(logits_KV.device))
        logits_BTV = model(**batch.inputs, use_cache=False).logits
        return None, take(logits_BTV.flatten(0, 1), batch.logit_index_M.to(logits_BTV.device))


def keeps_logits(model: Any) -> bool:
    """Whether the forward pass takes the places at which logits are wanted."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def not_finite(what: str, found: str, *, prefixed: bool) -> NotFinite:
    """The error for a row, named by `what`, whose losses or logits (`found`) are no numbers."""
    if not prefixed:
        return NotFinite(f"{what}: {found} of the base model are NaN or infinite; load it in float32")
    return NotFinite(
        f"{what}: {found} behind its prefix are NaN or infinite. Train the prefix again with a lower "
        "learning rate, or load the base in float32 if it is in 16 bits"
    )
