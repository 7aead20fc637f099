"""Independent computations that tests compare with: no code under test, only torch and transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import DynamicCache

from support.by_hand_attention import attention_layers, is_hybrid

Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""Per layer, keys and values `[H, P, D]`."""


def layers_of(prefix: Any) -> Layers:
    key_values = by_place(prefix.tensors)
    if "decoder" in key_values:
        return list(zip(*key_values["decoder"], strict=True))
    return [key_values[f"decoder.{layer}"] for layer in range(len(key_values))]


def by_place(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Tensors by name ("decoder.key.3") as keys and values by place ("decoder.3")."""
    keys = [name for name in tensors if name.split(".")[1] == "key"]
    return {name.replace(".key", ""): (tensors[name], tensors[name.replace("key", "value")]) for name in keys}


def logits(model: Any, ids: Sequence[int], prefix: Layers | None) -> torch.Tensor:
    """`[T, V]`: transformers' own attention, the prefix as `past_key_values`, one row alone.

    In a hybrid the cache has the prefix in its attention layers, and no state.
    """
    config = model.config.get_text_config(decoder=True)
    own = config.num_hidden_layers - getattr(config, "num_kv_shared_layers", 0)
    layers = [layer for layer in attention_layers(model) if layer < own]
    cache, length = DynamicCache(config=model.config if is_hybrid(model) else None), 0
    for layer, (key, value) in zip(layers, prefix or [], strict=prefix is not None):
        cache.update(key[None].to(model.dtype), value[None].to(model.dtype), layer)
        length = key.shape[1]
    ids_1T = torch.tensor([list(ids)])
    own = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        return model(
            input_ids=ids_1T,
            past_key_values=cache if prefix is not None else None,
            position_ids=torch.arange(length, length + len(ids))[None],
            attention_mask=torch.ones(1, length + len(ids)),
        ).logits[0]
    finally:
        model.set_attn_implementation(own)


def token_losses(
    model: Any, source: Sequence[int], target: Sequence[int], prefix: Layers | None
) -> torch.Tensor:
    """Loss of each target token of one row alone."""
    predicted = logits(model, [*source, *target], prefix)[len(source) - 1 : -1]
    return torch.nn.functional.cross_entropy(predicted, torch.tensor(list(target)), reduction="none")


@torch.no_grad()
def greedy(
    model: Any,
    ids: Sequence[int],
    prefix: Layers | None,
    new: int,
    end_ids: frozenset[int],
    fewest: int = 0,
) -> list[int]:
    """Greedy continuation without any cache of the text: every step computes everything anew.

    Of the first `fewest` tokens, each is the likeliest that is no end.
    """
    text = list(ids)
    for step in range(new):
        ranked = logits(model, text, prefix)[-1].argsort(descending=True).tolist()
        token = next(each for each in ranked if step >= fewest or each not in end_ids)
        if token in end_ids:
            break
        text.append(token)
    return text[len(ids) :]
