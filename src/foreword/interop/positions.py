"""From "text starts at 0" to "text starts at P": what has to happen to keys kept by the other rule.

Under a rotary embedding only the distance between query and key counts. A text token that stood at
t stands at P + t here, so the keys turn by P as well and every distance stays what it was. Learned
positions add something else to the text at P + t than at t, and no change of keys undoes that.

Shapes: L layers, H key/value heads, P prefix length, D head size.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch

from foreword.base.base_model import BaseModel
from foreword.errors import ForeignFormat

# Their angles depend on how long the text is, so that no one rotation is right for every text.
_CHANGING = ("dynamic", "longrope")


def text_from_zero_to_after(key_LHPD: torch.Tensor, base: BaseModel) -> torch.Tensor:
    """Keys of the decoder's self-attention that were trained with the text at position 0.

    Raises:
        ForeignFormat: positions that can't be converted.
    """
    if not base.takes_positions:  # BART, T5: a prefix does not move their text
        return key_LHPD
    rotary = _rotary_embedding(base)
    position = torch.full((1, 1), key_LHPD.shape[2])
    cos, sin = rotary(torch.zeros(1, dtype=torch.float32), position)
    # YaRN's factor scales queries and keys; these keys never had it, and turning must not lengthen them.
    scale = float(getattr(rotary, "attention_scaling", 1.0))
    turn = _rotation(base)
    turned, _ = turn(key_LHPD.float(), key_LHPD.float(), cos.cpu() / scale, sin.cpu() / scale)
    return turned.to(key_LHPD.dtype)  # type: ignore[no-any-return]


def _rotary_embedding(base: BaseModel) -> Any:
    found = [m for name, m in base.model.named_modules() if name.split(".")[-1] == "rotary_emb"]
    if len(found) != 1:
        raise ForeignFormat(
            f"{base.name} (model type {base.model.config.model_type}) has learned or other positions that "
            "are not one rotary embedding. The prefix was trained with the text at position 0, here it "
            "starts behind the prefix, and for such positions no keys make up for that. Train it again "
            "with Foreword"
        )
    rope_type = getattr(found[0], "rope_type", "default")
    if rope_type in _CHANGING or "layer_type" in inspect.signature(found[0].forward).parameters:
        raise ForeignFormat(
            f"the rotary embedding of {base.name} ({rope_type}) turns by angles that depend on the text's "
            "length or the layer; expected one rotation for all. Train the prefix again with Foreword"
        )
    return found[0]


def _rotation(base: BaseModel) -> Any:
    """The architecture's own function: pairs and partial rotation differ."""
    attention = next(m for m in base.model.modules() if getattr(m, "foreword_slot", None) is not None)
    function = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
    if function is None:
        raise ForeignFormat(
            f"{base.name} (model type {base.model.config.model_type}) turns its keys in a way of its own; "
            "expected apply_rotary_pos_emb. Train the prefix again with Foreword"
        )
    return function
