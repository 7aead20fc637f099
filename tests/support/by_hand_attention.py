"""Attention by hand: one row alone, no padding, no cache, the softmax written out.

The reference for every architecture. transformers finds it under a name of its own; which prefix
belongs to which module is told from the modules' names. No code under test is used.

Shapes: B = 1 row, T text tokens (queries), S text keys, P prefix length, Q query heads, D head size.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

NAME = "by-hand"

Tensors = Mapping[str, torch.Tensor]
"""A prefix as "decoder.key" and so on, each `[L, H, P, D]`, or as "decoder.key.0" and so on, each `[H, P, D]`."""

# What models say that does not change the result here: no dropout, positions and windows are in the mask.
_WITHOUT_EFFECT = {
    "dropout",
    "position_ids",
    "use_cache",
    "is_causal",
    "sliding_window",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "position_embeddings",
    "return_dict",
    "cu_seq_lens_q",
    "max_length_q",
    "labels",
}

_in_force: dict[str, Any] = {"prefix": None, "places": {}, "frequencies": {}}


def _attention(
    module: nn.Module,
    query_1QTD: torch.Tensor,
    key_1HSD: torch.Tensor,
    value_1HSD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    assert set(kwargs) <= _WITHOUT_EFFECT, f"what does {set(kwargs) - _WITHOUT_EFFECT} do?"
    assert query_1QTD.shape[0] == 1
    scaling = query_1QTD.shape[3] ** -0.5 if scaling is None else scaling
    stream, layer = _in_force["places"][module]
    prefix = _in_force["prefix"] or {}
    heads = []
    for head, query_TD in enumerate(query_1QTD[0]):
        shared = head // (query_1QTD.shape[1] // key_1HSD.shape[1])
        key_SD, value_SD = key_1HSD[0, shared], value_1HSD[0, shared]
        added_TS = torch.zeros(query_TD.shape[0], key_SD.shape[0])
        if attention_mask is not None:
            added_TS = added_TS + attention_mask[0, 0]
        elif stream == "decoder":
            added_TS = added_TS.masked_fill(torch.ones_like(added_TS).triu(1).bool(), -torch.inf)
        if position_bias is not None:
            added_TS = added_TS + position_bias[0, head]
        if any(name.startswith(f"{stream}.") for name in prefix):
            prefix_key_PD = _of_layer(prefix, f"{stream}.key", layer)[shared]
            value_SD = torch.cat([_of_layer(prefix, f"{stream}.value", layer)[shared], value_SD])
            added_TS = torch.cat([torch.zeros(query_TD.shape[0], prefix_key_PD.shape[0]), added_TS], dim=1)
            frequencies, window = _in_force["frequencies"].get(module), kwargs.get("sliding_window")
            if frequencies is not None and window is not None:
                positions_T = kwargs["position_ids"].expand(1, -1)[0].tolist()
                prefix_scores_TP = torch.stack(
                    [
                        _moved(prefix_key_PD, max(0, t - max(window - 1, len(prefix_key_PD))), frequencies)
                        @ query_D
                        for t, query_D in zip(positions_T, query_TD, strict=True)
                    ]
                )
            else:
                prefix_scores_TP = query_TD @ prefix_key_PD.T
        else:
            prefix_scores_TP = query_TD[:, :0]
        scores_TS = torch.cat([prefix_scores_TP, query_TD @ key_SD.T], dim=1) * scaling
        if softcap is not None:
            scores_TS = softcap * torch.tanh(scores_TS / softcap)
        powers_TS = torch.exp(scores_TS + added_TS - scores_TS.max())
        total_T1 = powers_TS.sum(dim=1, keepdim=True)
        if s_aux is not None:  # a sink takes a share and gives nothing
            total_T1 = total_T1 + torch.exp(s_aux[head] - scores_TS.max())
        heads.append(powers_TS / total_T1 @ value_SD)
    return torch.stack(heads, dim=1)[None], None


def _of_layer(prefix: Tensors, name: str, layer: int) -> torch.Tensor:
    return prefix[name][layer] if name in prefix else prefix[f"{name}.{layer}"]


@dataclass(frozen=True)
class Frequencies:
    """A rotary embedding: radians that a position turns each pair of numbers, and which numbers are pairs."""

    radians: torch.Tensor
    neighbours: bool = False


def _moved(key_PD: torch.Tensor, steps: int, rotary: Frequencies) -> torch.Tensor:
    """Keys `steps` positions further on: every pair of numbers a complex one, turned."""
    pairs = len(rotary.radians)
    turned, rest = key_PD[:, : 2 * pairs], key_PD[:, 2 * pairs :]
    if rotary.neighbours:
        real, imaginary = turned[:, 0::2], turned[:, 1::2]
    else:
        real, imaginary = turned[:, :pairs], turned[:, pairs:]
    angles = steps * rotary.radians
    numbers = torch.complex(real, imaginary) * torch.polar(torch.ones_like(angles), angles)
    if rotary.neighbours:
        together = torch.stack([numbers.real, numbers.imag], dim=-1).flatten(1)
    else:
        together = torch.cat([numbers.real, numbers.imag], dim=1)
    return torch.cat([together, rest], dim=1)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, eager_mask)


STATE_LAYERS = {"linear_attention", "conv", "moe", "mlp"}
"""Kinds of layers, as configs name them, that have no keys and values."""


def kinds_of_layers(model: Any) -> list[str]:
    """Of each layer of a decoder-only model, from its config."""
    config = model.config.get_text_config()
    return getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers


def is_hybrid(model: Any) -> bool:
    return any(kind in STATE_LAYERS or kind.startswith("hybrid") for kind in kinds_of_layers(model))


def attention_layers(model: Any) -> list[int]:
    """Numbers of the layers that have keys and values."""
    return [number for number, kind in enumerate(kinds_of_layers(model)) if kind not in STATE_LAYERS]


def _places(model: Any) -> dict[nn.Module, tuple[str, int]]:
    """Stream and layer of every attention module, from its name; attention layers alone are counted.

    Of the last layers of Gemma 3n and 4, which share keys and values, each takes those of the last layer of its
    kind in front of them, and so does the prefix.
    """
    found = {}
    numbers: dict[int, int] = {}
    if not model.config.is_encoder_decoder:
        numbers = {layer: place for place, layer in enumerate(attention_layers(model))}
    config = model.config.get_text_config(decoder=True)
    own = config.num_hidden_layers - getattr(config, "num_kv_shared_layers", 0)
    for name, module in model.named_modules():
        number = re.search(r"\.(\d+)\.", name + ".")
        if number is None:
            continue
        if re.search(r"encoder_attn|EncDecAttention|cross_attn", name):
            stream = "cross"
        else:
            stream = "encoder" if re.search(r"(^|\.)encoder\.", name) else "decoder"
        layer = int(number[1])
        if stream == "decoder" and own <= layer < config.num_hidden_layers:
            kind = config.layer_types[layer]
            layer = max(other for other in range(own) if config.layer_types[other] == kind)
        found[module] = (stream, numbers.get(layer, layer))
    return found


@contextlib.contextmanager
def within_window(model: Any) -> Iterator[None]:
    """Inside the block, by hand, windowed layers see a prefix from no farther than their window reaches."""
    rotary = next(m for m in model.get_decoder().modules() if "RotaryEmbedding" in type(m).__name__)
    types = getattr(model.config.get_text_config(), "layer_types", None)
    for module, (_, layer) in _places(model).items():
        name = "inv_freq" if hasattr(rotary, "inv_freq") else f"{types[layer] if types else ''}_inv_freq"
        neighbours = model.config.model_type.startswith("cohere")
        _in_force["frequencies"][module] = Frequencies(getattr(rotary, name), neighbours)
    try:
        yield
    finally:
        _in_force["frequencies"] = {}


@contextlib.contextmanager
def by_hand(model: Any, prefix: Tensors | None) -> Iterator[None]:
    """Inside the block, `model` computes its attention by hand, behind `prefix`."""
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    own = {identity: config._attn_implementation for identity, config in configs.items()}
    _in_force.update(prefix=prefix, places=_places(model))
    for config in configs.values():
        config._attn_implementation = NAME
    try:
        yield
    finally:
        for identity, config in configs.items():
            config._attn_implementation = own[identity]


def logits(
    model: Any, source: Sequence[int], target: Sequence[int], prefix: Tensors | None, start: int = 0
) -> torch.Tensor:
    """`[T, V]`: what follows each target token, and the source (or the start token) in front of them.

    T is one more than the target's length: the last row predicts what comes behind the target.
    """
    with by_hand(model, prefix):
        if model.config.is_encoder_decoder:
            found = model(
                input_ids=torch.tensor([list(source)]),
                attention_mask=torch.ones(1, len(source)),
                decoder_input_ids=torch.tensor([[start, *target]]),
                decoder_attention_mask=torch.ones(1, 1 + len(target)),
                use_cache=False,
            )
            return found.logits[0]
        length = _of_layer(prefix, "decoder.key", 0).shape[1] if prefix else 0
        text = [*source, *target]
        found = model(
            input_ids=torch.tensor([text]),
            position_ids=torch.arange(length, length + len(text))[None],
            attention_mask=torch.ones(1, len(text)),
            use_cache=False,
        )
        return found.logits[0, len(source) - 1 :]


def token_losses(
    model: Any, source: Sequence[int], target: Sequence[int], prefix: Tensors | None
) -> torch.Tensor:
    """Loss of each target token."""
    predicted = logits(model, source, target, prefix)[:-1]
    return nn.functional.cross_entropy(predicted, torch.tensor(list(target)), reduction="none")


@torch.no_grad()
def greedy(
    model: Any, source: Sequence[int], prefix: Tensors | None, new: int, end_ids: frozenset[int]
) -> list[int]:
    """Greedy continuation; every step computes everything anew."""
    target: list[int] = []
    for _ in range(new):
        token = int(logits(model, source, target, prefix)[-1].argmax())
        if token in end_ids:
            break
        target.append(token)
    return target
