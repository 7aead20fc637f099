"""How per-row prefixes enter the base model's attention: one place for every architecture.

transformers asks a registry for the function that does a model's attention, and another for the
function that makes its mask. Foreword registers both. Its attention function puts the row's prefix
keys and values in front of the layer's own, opens the mask for them, and leaves the rest to
transformers' SDPA or eager function. Which prefixes are in force is said by `attention_context(...)` around
the model's forward pass; outside of it the base model computes what it always computes.

Shapes: B rows, T text tokens (queries), S text keys, N tokens of a flat batch, P prefix length,
H key/value heads, D head size.

Causal attention behind a prefix, for kernels that take no mask.

Flash attention on GPUs knows one pattern: every query sees the keys up to its own, counted from the last
ones. With P columns in front that is what rows see whose prefixes are all P long and whose padding, if any,
stands behind the text. Rows of other kinds (prefixes of several lengths, padding in front, windows, infixes)
need a mask, and the kernels that take one.

Shapes: B rows, T queries, S = P + T keys, H key/value heads, D head size.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from foreword.base.batch import PackedLayout
from foreword.base.prefix_batch import PrefixBatch
from foreword.base.rope import RopeShift
from foreword.errors import UnsupportedArchitecture
from foreword.prefix import Stream

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


# -- How per-row prefixes enter the base model's attention: one place for every architecture -------


Kernel = Literal["sdpa", "eager"]
IMPLEMENTATIONS: dict[Kernel, str] = {"sdpa": "foreword-sdpa", "eager": "foreword-eager"}
"""Names under which transformers finds the functions (`attn_implementation=`)."""


Record = Callable[[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor, Mapping[str, Any]], None]


@dataclass(frozen=True)
class LayerInfo:
    """Which keys and values one attention module takes: set on the module when it is probed.

    Attributes:
        window: tokens that it sees, itself among them, if its window slides.
        turn: how its queries and keys are moved to other positions, if its window slides.
    """

    stream: Stream
    layer: int
    window: int | None = None
    turn: RopeShift | None = None


@dataclass
class AttentionContext:
    """What is in force during one forward pass (and its backward pass).

    Attributes:
        prefixes: what each row sees in front of its text; None for nothing.
        layout: how a flat batch divides into rows; None for an ordinary `[B, T]` batch.
        in_cache: the keys and values that reach attention have the prefixes in front already.
        answers_from: of each row, the first token that sees an infix; needed where a row has one.
        record: called with every attention call's module, query, key, value and further options.
        memo: masks extended by the prefix's columns, made once a pass rather than once a layer.
    """

    prefixes: PrefixBatch | None = None
    layout: PackedLayout | None = None
    in_cache: bool = False
    target_starts: tuple[int, ...] = ()
    record: Record | None = None
    memo: dict[Any, tuple[Any, Any]] = field(default_factory=dict)


# A context variable, so that threads of one process can use one model with different prefixes.
_current: ContextVar[AttentionContext | None] = ContextVar("foreword_attending", default=None)


@contextlib.contextmanager
def attention_context(state: AttentionContext | None) -> Iterator[None]:
    """Put `state` in force for the forward passes inside the block."""
    token = _current.set(state)
    try:
        yield
    finally:
        _current.reset(token)


def current() -> AttentionContext | None:
    """What is in force here; gradient checkpointing carries it into the second forward pass."""
    return _current.get()


# -- the attention function ----------------------------------------------------------------------


def _attend(kernel: Kernel) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    def attention(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        compute = sdpa_attention_forward if kernel == "sdpa" else _eager_function(module)
        state = _current.get()
        if state is None:
            return compute(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]
        if state.record is not None:
            state.record(module, query, key, value, kwargs)

        layout = state.layout
        if layout is not None:
            query, key, value = (layout.to_rows(tensor) for tensor in (query, key, value))
        mask = attention_mask
        slot = getattr(module, "foreword_layer", None)
        if slot is not None:
            if slot.layer == 0:  # a new pass has new masks
                state.memo = {name: kept for name, kept in state.memo.items() if name[0] != slot.stream}
            query, key, value, mask = _with_prefix(
                state, slot, module, query, key, value, attention_mask, kwargs
            )
        if mask is not None and kernel == "eager" and mask.dtype == torch.bool:
            stream = slot.stream if slot is not None else "decoder"
            mask = _once(state, (stream, "additive", id(mask)), mask, lambda m: _additive(m, query.dtype))
        if kernel == "sdpa" and query.shape[2] == 1 and kwargs.get("position_bias") is None:
            output, weights = _one_query(query, key, value, mask, kwargs.get("scaling")), None
        elif kernel == "sdpa" and slot is not None and _serves_causally(state, slot, query, mask, kwargs):
            output, weights = attend_causally(query, key, value, kwargs.get("scaling")), None
        elif kernel == "sdpa" and mask is not None and _is_grouped_on_cpu(query, key, kwargs):
            output, weights = _grouped(query, key, value, mask, kwargs.get("scaling")), None
        else:
            output, weights = compute(module, query, key, value, mask, **kwargs)
        return (layout.to_flat(output) if layout is not None else output), weights

    return attention


def _one_query(
    query_BQ1D: torch.Tensor,
    key_BHSD: torch.Tensor,
    value_BHSD: torch.Tensor,
    mask_B11S: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    """Attention of one new token, `[B, 1, Q, D]`: a decoding step.

    The query heads that share a key/value head are taken as so many queries of it, so that grouped
    keys and values are read once instead of being repeated in memory for every query head.
    """
    rows, queries, _, size = query_BQ1D.shape
    heads = key_BHSD.shape[1]
    grouped_BHGD = query_BQ1D.reshape(rows, heads, queries // heads, size)
    output_BHGD = nn.functional.scaled_dot_product_attention(
        grouped_BHGD, key_BHSD, value_BHSD, attn_mask=mask_B11S, scale=scaling
    )
    return output_BHGD.reshape(rows, 1, queries, -1)


def _serves_causally(
    state: AttentionContext,
    slot: LayerInfo,
    query: torch.Tensor,
    mask: torch.Tensor | None,
    kwargs: Mapping[str, Any],
) -> bool:
    if query.device.type not in DEVICES or mask is None:
        return False
    if kwargs.get("position_bias") is not None or kwargs.get("dropout"):
        return False
    valid_BT = None if state.layout is None else state.layout.valid_BT
    name = (slot.stream, "causal", id(mask))
    return bool(_once(state, name, mask, lambda m: is_causal(m, valid_BT)))


def _is_grouped_on_cpu(query: torch.Tensor, key: torch.Tensor, kwargs: Mapping[str, Any]) -> bool:
    # transformers repeats keys and values for every query head that shares them whenever there is a mask:
    # other devices need that. The CPU's kernel does not.
    return (
        query.device.type == "cpu"
        and query.shape[1] != key.shape[1]
        and kwargs.get("position_bias") is None
        and not kwargs.get("dropout")
    )


def _grouped(
    query_BQTD: torch.Tensor,
    key_BHSD: torch.Tensor,
    value_BHSD: torch.Tensor,
    mask_B1TS: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    """Attention of Q query heads that share H key/value heads, `[B, T, Q, D]`, without repeating these."""
    output_BQTD = nn.functional.scaled_dot_product_attention(
        query_BQTD, key_BHSD, value_BHSD, attn_mask=mask_B1TS, scale=scaling, enable_gqa=True
    )
    return output_BQTD.transpose(1, 2)


def _with_prefix(
    state: AttentionContext,
    slot: LayerInfo,
    module: nn.Module,
    query: torch.Tensor,
    key_BHSD: torch.Tensor,
    value_BHSD: torch.Tensor,
    mask: torch.Tensor | None,
    kwargs: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Query, keys and values with the prefix in front, and the mask that fits; T5's bias in `kwargs` too."""
    prefixes = state.prefixes
    if prefixes is None or slot.stream not in prefixes.blocks:  # no row has a prefix in this stream
        return query, key_BHSD, value_BHSD, mask
    length = prefixes.blocks[slot.stream].longest
    if not state.in_cache:
        prefix_key_BHPD, prefix_value_BHPD = prefixes.rows(slot.stream, slot.layer, like=key_BHSD)
        key_BHSD = torch.cat([prefix_key_BHPD, key_BHSD], dim=2)
        value_BHSD = torch.cat([prefix_value_BHPD, value_BHSD], dim=2)
    if mask is None:
        mask = _mask_when_none(module, query, key_BHSD.shape[2] - length)
    extended = _once(
        state,
        (slot.stream, id(mask)),
        mask,
        lambda m: _open_columns(
            m,
            prefixes.visible(slot.stream, key_BHSD.shape[0], m.shape[2], m.device, state.target_starts),
        ),
    )
    bias = kwargs.get("position_bias")
    if bias is not None:
        kwargs["position_bias"] = _once(
            state, (slot.stream, id(bias)), bias, lambda b: nn.functional.pad(b, (length, 0))
        )
    if slot.window is not None and (beyond_BT := _steps_beyond(state, slot, query, kwargs)) is not None:
        query, key_BHSD = _within_window(state, slot, query, key_BHSD, length, beyond_BT, kwargs)
    return query, key_BHSD, value_BHSD, extended


def _steps_beyond(
    state: AttentionContext, slot: LayerInfo, query: torch.Tensor, kwargs: Mapping[str, Any]
) -> torch.Tensor | None:
    """How far each query is beyond the position from which its row's prefix is seen, `[B, T]`; None: none."""
    prefixes, window = state.prefixes, slot.window
    if prefixes is None or window is None or not prefixes.within_window:
        return None
    given = kwargs["position_ids"]

    def count(positions: torch.Tensor) -> torch.Tensor | None:
        farthest_B = prefixes.farthest(window, query.shape[0], positions.device)
        if farthest_B is None:
            return None
        positions_BT = positions if state.layout is None else state.layout.of_rows(positions[0])
        beyond_BT = (positions_BT - farthest_B[:, None]).clamp(min=0)
        return beyond_BT if bool(beyond_BT.any()) else None

    beyond_BT: torch.Tensor | None = _once(state, (slot.stream, "beyond", window, id(given)), given, count)
    return beyond_BT


def _within_window(
    state: AttentionContext,
    slot: LayerInfo,
    query_BQTD: torch.Tensor,
    key_BHSD: torch.Tensor,
    length: int,
    beyond_BT: torch.Tensor,
    kwargs: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Query and keys of which the products are those of a prefix as far away as the window reaches.

    One new token: the prefix's keys are moved towards it. Several: every query meets the text at its own
    position and the prefix at another, so both stand side by side in a query of twice the size, opposite
    keys of which the half that is not meant is zero.
    """
    turn = slot.turn
    if turn is None:
        raise UnsupportedArchitecture(
            "a prefix is to stay within a sliding window's reach, but this model's positions can't be moved"
        )
    prefix_BHPD, text_BHSD = key_BHSD[:, :, :length], key_BHSD[:, :, length:]
    one, size = query_BQTD.shape[2] == 1, query_BQTD.shape[3]
    angles = _once(
        state,
        (slot.stream, "angles", turn.layer_type, id(beyond_BT)),
        beyond_BT,
        lambda steps: turn.angles(query_BQTD, steps if one else -steps),
    )
    if one:
        return query_BQTD, torch.cat([turn.by(prefix_BHPD, angles), text_BHSD], dim=2)
    if kwargs.get("scaling") is None:
        kwargs["scaling"] = size**-0.5
    pad = nn.functional.pad
    return (
        torch.cat([turn.by(query_BQTD, angles), query_BQTD], dim=3),
        torch.cat([pad(prefix_BHPD, (0, size)), pad(text_BHSD, (size, 0))], dim=2),
    )


def _once(
    state: AttentionContext, name: Any, source: torch.Tensor, make: Callable[[torch.Tensor], Any]
) -> Any:
    # The source is kept beside the result: while it lives, no other tensor can have its id.
    if name not in state.memo:
        state.memo[name] = (source, make(source))
    return state.memo[name][1]


def _open_columns(mask_B1TS: torch.Tensor, visible_BTP: torch.Tensor) -> torch.Tensor:
    """The mask with P columns in front, open where the row has a virtual token that the query sees."""
    columns = visible_BTP[:, None].expand(-1, 1, mask_B1TS.shape[2], -1)
    if mask_B1TS.dtype != torch.bool:
        columns = _additive(columns, mask_B1TS.dtype)
    rows, heads = columns.shape[0], mask_B1TS.shape[1]
    return torch.cat([columns.expand(-1, heads, -1, -1), mask_B1TS.expand(rows, -1, -1, -1)], dim=-1)


def _mask_when_none(module: nn.Module, query: torch.Tensor, keys: int) -> torch.Tensor:
    """The mask over `keys` of the text that a layer means when it passes none: causal for its own text."""
    queries = query.shape[2]
    mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
    if getattr(module, "is_causal", True) and queries > 1:
        mask = mask.tril(diagonal=keys - queries)
    return mask[None, None].expand(query.shape[0], -1, -1, -1)


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    closed = torch.finfo(dtype).min
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, closed)


def _eager_function(module: nn.Module) -> Callable[..., Any]:
    # Every modeling file of transformers has its own (soft caps, sinks), by this name.
    function = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if function is None:
        raise UnsupportedArchitecture(
            f"{type(module).__name__} has no eager attention function to put a prefix in front of"
        )
    return function  # type: ignore[no-any-return]


# -- the mask function ---------------------------------------------------------------------------


def _make_mask(**kwargs: Any) -> torch.Tensor | None:
    """transformers' boolean mask over the text alone, `[B, 1, T, S]`; prefix columns come later.

    A flat batch gets the mask of its rows, so that windows and causality are counted within a row.
    """
    state = _current.get()
    if state is None:
        return sdpa_mask(**kwargs)  # type: ignore[no-any-return]
    kwargs.update(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
    if state.layout is not None:
        layout = state.layout
        of_one_row = kwargs["mask_function"]
        kwargs.update(
            # transformers sees a single row, and what its functions hold per row (chunks) is of that one.
            mask_function=lambda row, head, query, key: of_one_row(row * 0, head, query, key),
            batch_size=layout.rows,
            q_length=layout.longest,
            kv_length=layout.longest,
            q_offset=0,
            kv_offset=0,
            attention_mask=layout.valid_BT,
        )
    return sdpa_mask(**kwargs)  # type: ignore[no-any-return]


def _make_eager_mask(**kwargs: Any) -> torch.Tensor | None:
    if _current.get() is None:
        kwargs.update(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
        mask = sdpa_mask(**kwargs)
        return _additive(mask, kwargs["dtype"])
    return _make_mask(**kwargs)


for _kernel, _name in IMPLEMENTATIONS.items():
    AttentionInterface.register(_name, _attend(_kernel))
    AttentionMaskInterface.register(_name, _make_mask if _kernel == "sdpa" else _make_eager_mask)
