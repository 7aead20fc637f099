"""Attention kernels that give what the model's own gives, for less, where a pass allows them.

One query a row; the causal pattern without a mask; and a flat batch without mask and padding, through torch's
variable-length attention. Flash attention takes rows of several lengths end to end, with the places where
each begins. A row's queries may be fewer than its keys, and see them as the last places do: so a row's keys
are its own virtual tokens and its own text, whatever the lengths of the others, and its queries are the
tokens that it does not share with a row before it. Queries and outputs stay where they are.

Shapes: B rows, T queries, S keys of a row, N tokens of a flat batch, R distinct prefixes, P longest prefix,
K keys of all rows end to end, Q query heads, H key/value heads, D head size.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from foreword.base.pass_metadata import Segments

varlen_attn: Callable[..., Any] | None
try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None
if varlen_attn and not {"window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys():
    varlen_attn = None  # an early form of it

LARGEST_HEAD = 256
"""Flash attention's limit; sizes are multiples of 8."""


def attend_one_query(
    query_BQ1D: torch.Tensor,
    key_BHSD: torch.Tensor,
    value_BHSD: torch.Tensor,
    mask_B11S: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    """Attention of one new token, `[B, 1, Q, D]`.

    The query heads that share a key/value head are taken as so many queries of it, so that grouped
    keys and values are read once instead of being repeated in memory for every query head.
    """
    rows, queries, _, size = query_BQ1D.shape
    heads = key_BHSD.shape[1]
    grouped_BHGD = query_BQ1D.reshape(rows, heads, queries // heads, size)
    output_BHGD = scaled_dot_product_attention(
        grouped_BHGD, key_BHSD, value_BHSD, attn_mask=mask_B11S, scale=scaling
    )
    return output_BHGD.reshape(rows, 1, queries, -1)


def attend_causally(
    query_BQTD: torch.Tensor, key_BHSD: torch.Tensor, value_BHSD: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Attention under the causal pattern, for kernels that take no mask, `[B, T, Q, D]`."""
    output_BQTD = scaled_dot_product_attention(
        query_BQTD,
        key_BHSD,
        value_BHSD,
        attn_mask=causal_lower_right(query_BQTD.shape[2], key_BHSD.shape[2]),
        scale=scaling,
        enable_gqa=query_BQTD.shape[1] != key_BHSD.shape[1],
    )
    return output_BQTD.transpose(1, 2)


@functools.cache
def _has_flash_attention(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere


def varlen_takes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether torch has variable-length attention for such states, on this device."""
    size = query.shape[-1]
    return (
        varlen_attn is not None
        and query.dtype in (torch.float16, torch.bfloat16)
        and size == key.shape[-1] == value.shape[-1]
        and size <= LARGEST_HEAD
        and size % 8 == 0
        and _has_flash_attention(query.device)
    )


def attend_varlen(
    query_1QND: torch.Tensor,
    key_1HND: torch.Tensor,
    value_1HND: torch.Tensor,
    prefix_RHPD: tuple[torch.Tensor, torch.Tensor] | None,
    segments: Segments,
    scaling: float | None,
) -> torch.Tensor:
    """Attention of a flat batch's tokens to their row's prefix, and to their row up to them, `[1, N, Q, D]`.

    Args:
        prefix_RHPD: keys and values of the R prefixes, in any floating-point type; None: no row has any.
    """
    prefix_key, prefix_value = prefix_RHPD or (key_1HND[:, :, :0], value_1HND[:, :, :0])
    key_KHD, value_KHD = (
        _Gather.apply(prefix.transpose(1, 2).flatten(0, 1), text[0].transpose(0, 1), segments.key_index_K)
        for prefix, text in ((prefix_key, key_1HND), (prefix_value, value_1HND))
    )
    assert varlen_attn is not None
    output_NQD: torch.Tensor = varlen_attn(
        query_1QND[0].transpose(0, 1),
        key_KHD,
        value_KHD,
        segments.query_ends_G1,
        segments.key_ends_G1,
        segments.most_queries,
        segments.most_keys,
        scale=scaling,
        window_size=(-1, 0),  # causal, the last query of a row seeing its last key
        enable_gqa=query_1QND.shape[1] != key_1HND.shape[1],
    )
    return output_NQD[None]


class _Gather(torch.autograd.Function):
    """Each row's keys (or values) from those of the prefixes and of the text, `[K, H, D]` in the text's type.

    The gradients of all rows that have a key in common are summed in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, prefix_ZHD: torch.Tensor, text_NHD: torch.Tensor, index_K: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(index_K)
        ctx.tokens = (prefix_ZHD.shape[0], text_NHD.shape[0])
        ctx.types = (prefix_ZHD.dtype, text_NHD.dtype)
        return torch.cat([prefix_ZHD.to(text_NHD.dtype), text_NHD]).index_select(0, index_K)

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        (index_K,) = ctx.saved_tensors
        (gradient_KHD,) = gradients
        total = gradient_KHD.new_zeros(sum(ctx.tokens), *gradient_KHD.shape[1:], dtype=torch.float32)
        total.index_add_(0, index_K, gradient_KHD.float())
        prefix_ZHD, text_NHD = total.split(ctx.tokens)
        return prefix_ZHD.to(ctx.types[0]), text_NHD.to(ctx.types[1]), None
