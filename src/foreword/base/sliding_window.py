"""Windows: which layers see a window of the last tokens only, and whether a prefix can stay in their reach.

Such a layer was never trained to see a key from farther than its window. A prefix in front of a long text
is farther, and seen from there it does harm (docs/sliding-window.md). Where the model's positions are
rotary, the prefix can be seen from no farther than the window reaches; that is tried out here.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from foreword.base.attention import AttentionContext, LayerInfo, attention_context
from foreword.base.rope import RopeShift

_CHANGING = ("dynamic", "longrope")
"""Rotary embeddings whose angles depend on the length of the text: a position is not one turn."""


def enable_window_shift(model: Any) -> bool:
    """Tell every layer with a sliding window how to move queries and keys; whether all could be told.

    False for a model without such layers, and for one whose positions can't be moved.
    """
    if model.config.is_encoder_decoder:  # there the text does not stand behind the prefix
        return False
    windowed = [m for m in model.modules() if getattr(m, "foreword_layer", LayerInfo("decoder", 0)).window]
    if not windowed:
        return False
    window = max(module.foreword_layer.window for module in windowed)
    at_start, further = (_states(model, first) for first in (0, 2 * window))
    if not at_start:
        return False
    for rotary in _rotary_embeddings(model):
        turns = {module: turn for module in windowed if (turn := _turn(model, rotary, module)) is not None}
        if len(turns) == len(windowed) and all(
            _moves(turn, at_start[module], further[module], 2 * window) for module, turn in turns.items()
        ):
            for module, turn in turns.items():
                module.foreword_layer = dataclasses.replace(module.foreword_layer, turn=turn)
            return True
    return False


def _rotary_embeddings(model: Any) -> list[nn.Module]:
    found = []
    for module in model.modules():
        kind = getattr(module, "rope_type", "default")
        kinds = set(kind.values()) if isinstance(kind, Mapping) else {kind}
        if "RotaryEmbedding" in type(module).__name__ and kinds.isdisjoint(_CHANGING):
            found.append(module)
    return found


def _turn(model: Any, rotary: nn.Module, module: nn.Module) -> RopeShift | None:
    apply = _applying(module)
    taken = inspect.signature(rotary.forward).parameters
    if apply is None or "position_ids" not in taken:
        return None
    if "layer_type" not in taken:
        return RopeShift(rotary, apply)
    types = model.config.get_text_config(decoder=True).layer_types
    return RopeShift(rotary, apply, types[module.foreword_layer.layer])  # type: ignore[union-attr]


def _applying(module: nn.Module) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] | None:
    """How the model turns states by cosines and sines; None where it is done in no known way."""
    # Every modeling file of transformers has its own (halves, pairs, a part of the head), by this name.
    function = getattr(sys.modules[type(module).__module__], "apply_rotary_pos_emb", None)
    if function is None:
        return None
    taken = list(inspect.signature(function).parameters)
    if taken[:4] == ["q", "k", "cos", "sin"]:
        return lambda states, cosines, sines: function(states, states[:, :0], cosines, sines)[0]
    if taken[:3] == ["x", "cos", "sin"]:
        return lambda states, cosines, sines: function(states, cosines, sines, unsqueeze_dim=1)
    return None


def _states(model: Any, first: int) -> dict[nn.Module, torch.Tensor]:
    """Queries and keys `[1, H, 2, D]` of every layer for two tokens, the first at position `first`."""
    found: dict[nn.Module, torch.Tensor] = {}

    def record(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: Mapping[str, Any],
    ) -> None:
        if options.get("position_ids") is not None:  # by which attention knows how far a query is
            found[module] = torch.cat([query, key], dim=1)

    device = model.get_input_embeddings().weight.device
    inputs = {
        "input_ids": torch.zeros(1, 2, dtype=torch.long, device=device),
        "attention_mask": torch.ones(1, 2, dtype=torch.long, device=device),
        "position_ids": torch.arange(first, first + 2, device=device)[None],
    }
    with torch.no_grad(), attention_context(AttentionContext(record=record)):
        model(**inputs, use_cache=False)
    return found


def _moves(turn: RopeShift, at_start: torch.Tensor, further: torch.Tensor, steps: int) -> bool:
    """Whether turning by `steps` makes of the states at the start those of the same text further on."""
    with torch.no_grad():
        moved = turn.by(at_start, turn.angles(at_start, torch.full((1, 2), steps, device=at_start.device)))
    far = 1e-3 if moved.dtype in (torch.float32, torch.float64) else 0.05
    return float((moved - further).norm()) <= far * float(further.norm())
