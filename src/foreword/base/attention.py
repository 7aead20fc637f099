"""How prefixes enter the model's attention: one place for every architecture.

transformers asks a registry for the function that computes a model's attention, and another for the one
that makes its mask. Foreword registers both. Its attention function puts each row's prefix keys and values
in front of the layer's own, opens the mask for them, and leaves the rest to the kernel that
`_attend` names. Which prefixes are in force is said by `attention_context(...)` around the model's
forward pass; outside of it the model computes what it always computes.

Shapes: B rows, T text tokens (queries), P prefix length, S = P + T keys, N tokens of a flat batch, L layers,
Q query heads, H key/value heads, D head size.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_layers import GradientCheckpointingLayer

from foreword.base.batch import PackedLayout
from foreword.base.prefix_batch import KeyValues, PrefixBatch
from foreword.base.sliding_window import Angles, RopeShift, move_prefix_near
from foreword.errors import UnsupportedArchitecture
from foreword.prefix import Stream

Kernel = Literal["sdpa", "eager"]
IMPLEMENTATIONS: dict[Kernel, str] = {"sdpa": "foreword-sdpa", "eager": "foreword-eager"}
"""Names under which transformers finds the functions (`attn_implementation=`)."""

CAUSAL_DEVICES = {"cuda"}
"""Where a kernel that knows the causal pattern is faster than one that reads a mask. The CPU's would make the
mask anew for every layer."""

Value = TypeVar("Value")
Made = list[tuple[torch.Tensor, Value]]


@dataclass(frozen=True)
class LayerInfo:
    """Which keys and values one attention module takes: set on the module, as `foreword_layer`, by `probe`.

    Attributes:
        layer: of those that have keys and values of their own; a module that shares them with an earlier one
            has that one's number, and so its prefix.
        sliding_window: tokens that it sees, itself among them, if its window slides.
        rope: how its queries and keys are moved to other positions, if its window slides.
    """

    stream: Stream
    layer: int
    sliding_window: int | None = None
    rope: RopeShift | None = None


@dataclass
class MaskCache:
    """What the layers of one stream share in one pass, each value made once, kept beside its source tensor.

    Attributes:
        extended: the mask with the prefix's columns in front, by the mask over the text.
        additive: a boolean mask as numbers that are added to scores, by that mask.
        is_causal: whether a mask is the causal pattern, by that mask.
        bias: T5's position bias with the prefix's columns in front, by the bias over the text.
        beyond: how far each query is beyond the prefix's reach, by size of the sliding window and positions.
        angles: rotary angles of those distances, by kind of layer and distances.
    """

    extended: Made[torch.Tensor] = field(default_factory=list)
    additive: Made[torch.Tensor] = field(default_factory=list)
    is_causal: Made[bool] = field(default_factory=list)
    bias: Made[torch.Tensor] = field(default_factory=list)
    beyond: dict[int, Made[torch.Tensor | None]] = field(default_factory=lambda: defaultdict(list))
    angles: dict[str | None, Made[Angles]] = field(default_factory=lambda: defaultdict(list))


def _once(made: Made[Value], source: torch.Tensor, make: Callable[[torch.Tensor], Value]) -> Value:
    """What `make` made of this very tensor, now or before: all layers of a kind are handed one mask."""
    for known, value in made:
        if known is source:  # the list holds it, so no other tensor can take its place in memory
            return value
    made.append((source, value := make(source)))
    return value


@dataclass(frozen=True)
class AttentionCall:
    """One layer's call of the attention function, as the model made it."""

    module: nn.Module
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    options: Mapping[str, Any]


@dataclass
class AttentionContext:
    """What is in force during one forward pass (and its backward pass).

    Attributes:
        prefixes: what each row sees in front of its text; None for nothing.
        layout: how a flat batch divides into rows; None for an ordinary `[B, T]` batch.
        in_cache: the keys and values that reach attention have the prefixes in front already.
        target_starts: of each row, the first token that sees an infix; needed where a row has one.
        record: takes every call of the attention function.
        mask_cache: of each stream, for the pass that is under way.
    """

    prefixes: PrefixBatch | None = None
    layout: PackedLayout | None = None
    in_cache: bool = False
    target_starts: tuple[int, ...] = ()
    record: Callable[[AttentionCall], None] | None = None
    mask_cache: dict[Stream, MaskCache] = field(default_factory=lambda: defaultdict(MaskCache))


# A context variable, so that threads of one process can use one model with different prefixes.
_current: ContextVar[AttentionContext | None] = ContextVar("foreword_attention", default=None)


@contextlib.contextmanager
def attention_context(state: AttentionContext | None) -> Iterator[None]:
    """Put `state` in force for the forward passes inside the block."""
    token = _current.set(state)
    try:
        yield
    finally:
        _current.reset(token)


def capture_attention(model: Any, inputs: Mapping[str, Any]) -> tuple[Any, list[AttentionCall]]:
    """One pass of the model without prefixes: its output, and all calls of attention in order."""
    calls: list[AttentionCall] = []
    with attention_context(AttentionContext(record=calls.append)):
        output = model(**inputs, use_cache=False)
    return output, calls


def capture_kv(
    model: Any,
    inputs: Mapping[str, Any],
    tokens: int | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Any, KeyValues]:
    """One pass of the model over one text: its output, and the keys and values that it makes of the tokens.

    They are read where the attention kernel sees them (behind the rotary embedding, at positions from 0),
    which makes them a prefix that stands for these tokens. Gradients flow back through them where they are
    on.

    Args:
        tokens: how many, from the text's beginning; None: all.
        device: where they go, in float32: layers of one model can live on different devices.
    """
    output, calls = capture_attention(model, inputs)
    layers: dict[Stream, dict[int, tuple[torch.Tensor, torch.Tensor]]] = defaultdict(dict)
    for call in calls:
        layer: LayerInfo = call.module.foreword_layer  # type: ignore[assignment]
        if layer.layer not in layers[layer.stream]:  # else it shares those of an earlier layer
            key_HPD, value_HPD = (part[0, :, :tokens].float().to(device) for part in (call.key, call.value))
            layers[layer.stream][layer.layer] = (key_HPD, value_HPD)
    key_values: KeyValues = {}
    for stream, by_layer in layers.items():
        pairs = [by_layer[layer] for layer in range(len(by_layer))]
        if len({(key.shape, value.shape) for key, value in pairs}) == 1:
            keys, values = zip(*pairs, strict=True)
            key_values[stream] = torch.stack(keys), torch.stack(values)
        else:
            key_values |= {f"{stream}.{layer}": pair for layer, pair in enumerate(pairs)}
    return output, key_values


# -- the attention function ----------------------------------------------------------------------


def _attention_function(kernel: Kernel) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    def attention(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        state = _current.get()
        if state is None:
            own = _own_kernel(kernel, module)
            return own(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]
        if state.record is not None:
            state.record(AttentionCall(module, query, key, value, dict(kwargs)))

        layout, mask = state.layout, attention_mask
        if layout is not None:  # tokens end to end become rows, for attention alone
            query, key, value = (layout.to_rows(tensor) for tensor in (query, key, value))
        layer: LayerInfo | None = getattr(module, "foreword_layer", None)
        stream: Stream = "decoder" if layer is None else layer.stream
        if layer is not None:
            if layer.layer == 0:  # a new pass has new masks
                state.mask_cache.pop(stream, None)
            query, key, value, mask = _with_prefix(state, layer, module, query, key, value, mask, kwargs)
        cache = state.mask_cache[stream]
        if mask is not None and kernel == "eager" and mask.dtype == torch.bool:
            mask = _once(cache.additive, mask, lambda boolean: _additive(boolean, query.dtype))
        valid_BT = None if layout is None else layout.valid_BT
        output, weights = _attend(kernel, module, query, key, value, mask, valid_BT, cache, kwargs)
        return (layout.to_flat(output) if layout is not None else output), weights

    return attention


def _with_prefix(
    state: AttentionContext,
    layer: LayerInfo,
    module: nn.Module,
    query: torch.Tensor,
    key_BHSD: torch.Tensor,
    value_BHSD: torch.Tensor,
    mask: torch.Tensor | None,
    kwargs: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Query, keys and values with the prefix in front, and the mask that fits; T5's bias in `kwargs` too."""
    prefixes, stream = state.prefixes, layer.stream
    if prefixes is None or stream not in prefixes.blocks:  # no row has a prefix in this stream
        return query, key_BHSD, value_BHSD, mask
    cache = state.mask_cache[stream]
    length = prefixes.blocks[stream].longest
    if not state.in_cache:
        prefix_key_BHPD, prefix_value_BHPD = prefixes.rows(stream, layer.layer, like=key_BHSD)
        key_BHSD = torch.cat([prefix_key_BHPD, key_BHSD], dim=2)
        value_BHSD = torch.cat([prefix_value_BHPD, value_BHSD], dim=2)
    if mask is None:
        mask = _mask_when_none(module, query, key_BHSD.shape[2] - length)
    # Only the columns of the text come from transformers. Those of the prefix are ours: open for every token
    # of the row (an infix: from its target on), and closed where a row's prefix is shorter than P.
    extended = _once(
        cache.extended,
        mask,
        lambda text: _open_columns(
            text,
            prefixes.visible(stream, key_BHSD.shape[0], text.shape[2], text.device, state.target_starts),
        ),
    )
    bias = kwargs.get("position_bias")
    if bias is not None:  # a virtual token has no position, so it gets no bias
        kwargs["position_bias"] = _once(cache.bias, bias, lambda text: pad(text, (length, 0)))
    if layer.sliding_window is not None and prefixes.within_window:
        beyond_BT = _steps_beyond(state, layer.sliding_window, query, kwargs["position_ids"])
        if beyond_BT is not None:
            rope = layer.rope
            if rope is None:
                raise UnsupportedArchitecture(
                    "a prefix is to stay within a sliding window's reach, but this model's positions "
                    "can't be moved"
                )
            angles = _once(
                cache.angles[rope.layer_type],
                # One new token: the prefix moves forward, towards it. Several: each query moves back.
                beyond_BT,
                lambda steps: rope.angles(query, steps if query.shape[2] == 1 else -steps),
            )
            query, key_BHSD = move_prefix_near(rope, query, key_BHSD, length, angles, kwargs)
    return query, key_BHSD, value_BHSD, extended


def _steps_beyond(
    state: AttentionContext, window: int, query: torch.Tensor, position_ids: torch.Tensor
) -> torch.Tensor | None:
    """How far each query is beyond the position from which its row's prefix is seen, `[B, T]`; None: none."""
    prefixes, layout = state.prefixes, state.layout
    assert prefixes is not None

    def count(positions: torch.Tensor) -> torch.Tensor | None:
        farthest_B = prefixes.farthest(window, query.shape[0], positions.device)
        if farthest_B is None:
            return None
        positions_BT = positions if layout is None else layout.of_rows(positions[0])
        beyond_BT = (positions_BT - farthest_B[:, None]).clamp(min=0)
        return beyond_BT if bool(beyond_BT.any()) else None

    return _once(state.mask_cache["decoder"].beyond[window], position_ids, count)


def _attend(
    kernel: Kernel,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    valid_BT: torch.Tensor | None,
    cache: MaskCache,
    kwargs: Mapping[str, Any],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention of one layer, `[B, T, Q, D]`; all ways give the same, some with less memory or time.

    | the layer | computed by |
    |---|---|
    | eager, or a bias is added | the model's own function |
    | one query a row: a decoding step | `attend_one_query`: grouped keys are read once |
    | no mask, or dropout | the model's own function |
    | on a GPU, under the causal pattern | `attend_causally`: flash attention takes no mask |
    | on a CPU, query heads share keys | torch's kernel, which repeats no keys there |
    | anything else | transformers' SDPA function |
    """
    own = _own_kernel(kernel, module)
    scaling = kwargs.get("scaling")
    if kernel != "eager" and kwargs.get("position_bias") is None:
        if query.shape[2] == 1:
            return attend_one_query(query, key, value, mask, scaling), None
        if mask is not None and not kwargs.get("dropout"):
            if (
                query.device.type in CAUSAL_DEVICES
                and hasattr(module, "foreword_layer")
                and _once(cache.is_causal, mask, lambda mask_B1TS: is_causal(mask_B1TS, valid_BT))
            ):
                return attend_causally(query, key, value, scaling), None
            # transformers repeats keys and values for every query head that shares them whenever there is
            # a mask: other devices need that. The CPU's kernel does not.
            if query.device.type == "cpu" and query.shape[1] != key.shape[1]:
                output_BQTD = scaled_dot_product_attention(
                    query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True
                )
                return output_BQTD.transpose(1, 2), None
    return own(module, query, key, value, mask, **kwargs)  # type: ignore[no-any-return]


def _own_kernel(kernel: Kernel, module: nn.Module) -> Callable[..., Any]:
    if kernel == "sdpa":
        return sdpa_attention_forward  # type: ignore[no-any-return]
    # Every modeling file of transformers has its own (soft caps, sinks), by this name.
    function = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if function is None:
        raise UnsupportedArchitecture(
            f"{type(module).__name__} has no eager attention function to put a prefix in front of"
        )
    return function  # type: ignore[no-any-return]


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


def is_causal(mask_B1TS: torch.Tensor, valid_BT: torch.Tensor | None) -> bool:
    """Whether every query of a row's text sees the keys up to its own, counted from the last ones.

    That is what rows see whose prefixes are all P long and whose padding, if any, stands behind the text.
    Rows of other kinds (prefixes of several lengths, padding in front, sliding windows, infixes) need a
    mask. The answer costs one transfer from the device.

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


# -- masks -------------------------------------------------------------------------------------------


def _make_mask(**kwargs: Any) -> torch.Tensor | None:
    """transformers' boolean mask over the text alone, `[B, 1, T, S]`; prefix columns come later.

    A flat batch gets the mask of its rows, so that windows and causality are counted within a row.
    """
    state = _current.get()
    if state is None:
        return sdpa_mask(**kwargs)  # type: ignore[no-any-return]
    # transformers leaves a mask out where the kernel's own causal flag does; with columns in front that flag
    # would mean other keys.
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
        return _additive(sdpa_mask(**kwargs), kwargs["dtype"])
    return _make_mask(**kwargs)


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


for _kernel, _name in IMPLEMENTATIONS.items():
    AttentionInterface.register(_name, _attention_function(_kernel))
    AttentionMaskInterface.register(_name, _make_mask if _kernel == "sdpa" else _make_eager_mask)


@contextlib.contextmanager
def gradient_checkpointing(model: Any, enabled: bool = True) -> Iterator[None]:
    """Keep only what enters each layer, and compute the rest again going back, inside the block.

    transformers' own switch works in training mode only, and a frozen model stays in eval mode (no
    dropout). So the layers' forward passes are wrapped here. The second forward pass may run on another
    thread, after `attention_context` has ended; it gets the state that was in force in the first.

    Raises:
        UnsupportedArchitecture: the model has no layers that say they can be checkpointed.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)] if enabled else []
    if enabled and not layers:
        raise UnsupportedArchitecture(f"{type(model).__name__} has no layers that can be checkpointed")
    for layer in layers:
        layer.forward = functools.partial(
            checkpoint,
            layer.forward,
            use_reentrant=False,
            preserve_rng_state=False,  # eval mode: nothing random happens
            context_fn=_carry_state,
        )
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # uncovers the class's own


def _carry_state() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return contextlib.nullcontext(), attention_context(_current.get())
