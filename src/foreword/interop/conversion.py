"""The flat layout: how other libraries keep one stream's keys and values.

`[P, 2 * L * H * D]`: for each virtual token, each layer's key and then its value, head by head. Li
and Liang's code had it first; PEFT and adapters took it over.

Shapes: P prefix length, L layers, 2 key and value, H key/value heads, D head size.
"""

from __future__ import annotations

import torch

from foreword.errors import GeometryMismatch
from foreword.geometry import StreamGeometry


def width(sizes: StreamGeometry) -> int:
    """Numbers per virtual token."""
    return sizes.layers * sizes.kv_heads * (sizes.key_dim + sizes.value_dim)


def from_flat(flat: torch.Tensor, sizes: StreamGeometry, *, where: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values `[L, H, P, D]`.

    Args:
        where: names the tensor in errors.

    Raises:
        GeometryMismatch: the tensor is not of these sizes.
    """
    if flat.ndim != 2 or flat.shape[1] != width(sizes) or sizes.key_dim != sizes.value_dim:
        raise GeometryMismatch(
            f"{where} is {list(flat.shape)}, but the base has {sizes}, so [P, {width(sizes)}] was expected; "
            "give the base model that the prefix was trained for"
        )
    flat_PL2HD = flat.reshape(flat.shape[0], sizes.layers, 2, sizes.kv_heads, sizes.key_dim)
    key_LHPD, value_LHPD = flat_PL2HD.permute(2, 1, 3, 0, 4)
    return key_LHPD, value_LHPD


def to_flat(key_LHPD: torch.Tensor, value_LHPD: torch.Tensor) -> torch.Tensor:
    """The reverse of `from_flat`."""
    both_2LHPD = torch.stack([key_LHPD, value_LHPD])
    return both_2LHPD.permute(3, 1, 0, 2, 4).flatten(start_dim=1).contiguous()
