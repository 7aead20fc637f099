"""From other libraries' prefixes to ours: their flat layout, the network that makes it, their positions.

The flat layout is `[P, 2 * L * H * D]`: for each virtual token, each layer's key and then its value, head by
head. Li and Liang's code had it first; PEFT and adapters took it over.

Shapes: L layers, H key/value heads, P prefix length, D head size; 2 is key and value.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from foreword.base.base_model import BaseModel
from foreword.base.compatibility import rotation
from foreword.base.rope import CHANGING
from foreword.base.sliding_window import RopeShift
from foreword.errors import ForeignFormat, GeometryMismatch
from foreword.prefix import StreamGeometry


def width(sizes: StreamGeometry) -> int:
    """Numbers per virtual token."""
    return sum(heads * (key_dim + value_dim) for heads, key_dim, value_dim in sizes.by_layer)


def from_flat(flat: torch.Tensor, sizes: StreamGeometry, *, where: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values `[L, H, P, D]`.

    Args:
        where: names the tensor in errors.

    Raises:
        GeometryMismatch: the tensor is not of these sizes, or they differ by layer.
    """
    heads, key_dim, value_dim = sizes.alike or (0, 0, 0)
    if flat.ndim != 2 or flat.shape[1] != width(sizes) or not heads or key_dim != value_dim:
        raise GeometryMismatch(
            f"{where} is {list(flat.shape)}, but the base has {sizes}, so [P, {width(sizes)}] was expected; "
            "give the base model that the prefix was trained for"
        )
    flat_PL2HD = flat.reshape(flat.shape[0], sizes.layers, 2, heads, key_dim)
    key_LHPD, value_LHPD = flat_PL2HD.permute(2, 1, 3, 0, 4)
    return key_LHPD, value_LHPD


def to_flat(key_LHPD: torch.Tensor, value_LHPD: torch.Tensor) -> torch.Tensor:
    """The reverse of `from_flat`."""
    both_2LHPD = torch.stack([key_LHPD, value_LHPD])
    return both_2LHPD.permute(3, 1, 0, 2, 4).flatten(start_dim=1).contiguous()


Activation = Callable[[torch.Tensor], torch.Tensor]


def run(tensors: Mapping[str, torch.Tensor], activation: Activation, *, suffix: str = "") -> torch.Tensor:
    """What a reparameterization's network makes for all its virtual tokens: the flat layout, `[P, width]`.

    Embedding, linear, activation, linear (, activation, linear): Li and Liang's, with the same tensor names
    in their code and in adapters.

    Args:
        tensors: `wte.weight`, `control_trans.0.weight`, `control_trans.0.bias`, `control_trans.2.weight`...
        suffix: what stands behind `wte` and `control_trans` in the names of this one.

    Raises:
        ForeignFormat: a tensor is missing, or does not fit the one before.
    """
    network = f"control_trans{suffix}."
    numbers = sorted(
        {name.removeprefix(network).split(".")[0] for name in tensors if name.startswith(network)}
    )
    wanted = [f"{network}{number}.{part}" for number in numbers for part in ("weight", "bias")]
    if missing := [name for name in (f"wte{suffix}.weight", *wanted) if name not in tensors]:
        raise ForeignFormat(f"it lacks {', '.join(missing)}; the file is not whole, fetch it again")
    for name in (f"wte{suffix}.weight", *wanted):
        dims = 1 if name.endswith("bias") else 2
        if tensors[name].ndim != dims:
            shape = list(tensors[name].shape)
            raise ForeignFormat(f"{name} is {shape}; expected a tensor of {dims} dimensions")
    states = tensors[f"wte{suffix}.weight"]
    for place, number in enumerate(numbers):
        weight, bias = (tensors[f"{network}{number}.{part}"] for part in ("weight", "bias"))
        try:
            states = torch.nn.functional.linear(activation(states) if place else states, weight, bias)
        except RuntimeError as error:
            raise ForeignFormat(
                f"{network}{number}.weight is {list(weight.shape)} and does not take {list(states.shape)}; "
                "the tensors do not belong together"
            ) from error
    return states


def text_from_zero_to_after(key_LHPD: torch.Tensor, base: BaseModel) -> torch.Tensor:
    """Keys of the decoder's self-attention that were trained with the text at position 0, for text at P.

    Under a rotary embedding only the distance between query and key counts. A text token that stood at t
    stands at P + t here, so the keys are rotated by P as well and every distance stays what it was. Learned
    positions add something else to the text at P + t than at t, and no change of keys undoes that.

    Raises:
        ForeignFormat: positions that can't be converted.
    """
    if not base.takes_positions:  # BART, T5: a prefix does not move their text
        return key_LHPD
    shift = RopeShift(_rotary_embedding(base), _rotation(base))
    keys_LHPD = key_LHPD.float()
    cosines, sines = shift.angles(keys_LHPD[:1, 0, 0, 0], torch.full((1, 1), key_LHPD.shape[2]))
    return shift.move(keys_LHPD, (cosines.cpu(), sines.cpu())).to(key_LHPD.dtype)


def _rotary_embedding(base: BaseModel) -> Any:
    modules = [m for name, m in base.model.named_modules() if name.split(".")[-1] == "rotary_emb"]
    if len(modules) != 1:
        raise ForeignFormat(
            f"{base.name} (model type {base.model.config.model_type}) has learned or other positions that "
            "are not one rotary embedding. The prefix was trained with the text at position 0, here it "
            "starts behind the prefix, and for such positions no keys make up for that. Train it again "
            "with Foreword"
        )
    rope_type = getattr(modules[0], "rope_type", "default")
    if rope_type in CHANGING or "layer_type" in inspect.signature(modules[0].forward).parameters:
        raise ForeignFormat(
            f"the rotary embedding of {base.name} ({rope_type}) turns by angles that depend on the text's "
            "length or the layer; expected one rotation for all. Train the prefix again with Foreword"
        )
    return modules[0]


def _rotation(base: BaseModel) -> Any:
    """The architecture's own function: pairs and partial rotation differ."""
    attention = next(m for m in base.model.modules() if getattr(m, "foreword_layer", None) is not None)
    function = rotation(attention)
    if function is None:
        raise ForeignFormat(
            f"{base.name} (model type {base.model.config.model_type}) turns its keys in a way of its own; "
            "expected apply_rotary_pos_emb. Train the prefix again with Foreword"
        )
    return function
