"""Causal attention behind a prefix, for kernels that take no mask.

Flash attention on GPUs knows one pattern: every query sees the keys up to its own, counted from the last
ones. With P columns in front that is what rows see whose prefixes are all P long and whose padding, if any,
stands behind the text. Rows of other kinds (prefixes of several lengths, padding in front, windows, infixes)
need a mask, and the kernels that take one.

Shapes: B rows, T queries, S = P + T keys, H key/value heads, D head size.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.attention.bias import causal_lower_right

DEVICES = {"cuda"}
"""Where kernels gain by it. The CPU's kernel would make the mask anew for every layer."""


def is_causal(mask_B1TS: torch.Tensor, valid_BT: torch.Tensor | None) -> bool:
    """Whether the mask is the pattern for every query of a row's text; one transfer from the device.

    Args:
        mask_B1TS: boolean, true where a query sees a key.
        valid_BT: which queries are text; None: all.
    """
    queries, keys = mask_B1TS.shape[2:]
    if mask_B1TS.dtype != torch.bool or mask_B1TS.shape[1] != 1 or keys < queries:
        return False
    pattern_TS = torch.ones(queries, keys, dtype=torch.bool, device=mask_B1TS.device).tril(keys - queries)
    agrees_BT = (mask_B1TS[:, 0] == pattern_TS).all(dim=-1)
    return bool((agrees_BT if valid_BT is None else agrees_BT | ~valid_BT).all())


def attend_causally(
    query_BQTD: torch.Tensor, key_BHSD: torch.Tensor, value_BHSD: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Attention of Q query heads that share H key/value heads, `[B, T, Q, D]`."""
    output_BQTD = nn.functional.scaled_dot_product_attention(
        query_BQTD,
        key_BHSD,
        value_BHSD,
        attn_mask=causal_lower_right(query_BQTD.shape[2], key_BHSD.shape[2]),
        scale=scaling,
        enable_gqa=query_BQTD.shape[1] != key_BHSD.shape[1],
    )
    return output_BQTD.transpose(1, 2)
