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
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from foreword.base.batch import PackedLayout
from foreword.base.kernels import attend_causally, attend_one_query, attend_varlen, varlen_takes
from foreword.base.pass_metadata import PassMetadata
from foreword.base.prefix_batch import KeyValues, PrefixBatch
from foreword.base.sliding_window import Angles, RopeShift, move_prefix_near
from foreword.errors import UnsupportedArchitecture
from foreword.prefix import Stream

if TYPE_CHECKING:  # serving alone needs it
    from foreword.base.ragged_cache import RaggedPass

Kernel = Literal["sdpa", "eager"]
IMPLEMENTATIONS: dict[Kernel, str] = {"sdpa": "foreword-sdpa", "eager": "foreword-eager"}
"""Names under which transformers finds the functions (`attn_implementation=`)."""

LONGEST_MASK = 4096
"""Tokens of the longest text without a prefix that gets a mask where the kernel's causal flag says the same.
Of 20,000 tokens a mask is 0.4 GB of truth values, and 1.6 GB of numbers in each layer."""

CAUSAL_DEVICES = {"cuda"}
"""Where a kernel that knows the causal pattern is faster than one that reads a mask, so that no mask is made
where that pattern is all that it says. The CPU's would make the mask anew for every layer."""

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
        bias: T5's position bias with the prefix's columns in front, by the bias over the text.
        text: the mask that layers mean which pass none, by (queries, keys, causal, device).
        beyond: how far each query is beyond the prefix's reach, by size of the sliding window and device.
        angles: rotary angles of those distances, by kind of layer and distances.
    """

    extended: Made[torch.Tensor] = field(default_factory=list)
    additive: Made[torch.Tensor] = field(default_factory=list)
    bias: Made[torch.Tensor] = field(default_factory=list)
    text: dict[tuple[int, int, bool, torch.device], torch.Tensor] = field(default_factory=dict)
    beyond: dict[tuple[int, torch.device], torch.Tensor] = field(default_factory=dict)
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
        ragged: keeps the keys and values of a decoder's running rows, and says which token sees which of
            them; the masks that transformers makes say nothing then.
        last_positions, unpadded: see `PassMetadata`; nothing but speed depends on them.
        metadata: what the layers look up about the rows.
        mask_cache: of each stream, for the pass that is under way.
    """

    prefixes: PrefixBatch | None = None
    layout: PackedLayout | None = None
    in_cache: bool = False
    target_starts: tuple[int, ...] = ()
    record: Callable[[AttentionCall], None] | None = None
    ragged: RaggedPass | None = None
    last_positions: tuple[int, ...] = ()
    unpadded: bool = False
    metadata: PassMetadata = field(init=False)
    mask_cache: dict[Stream, MaskCache] = field(default_factory=lambda: defaultdict(MaskCache))

    def __post_init__(self) -> None:
        self.metadata = PassMetadata(
            self.prefixes, self.layout, self.target_starts, self.last_positions, self.unpadded
        )

    def prepare(self, rows: int, queries: int, device: torch.device) -> None:
        """Make what the layers on a device will look up, before the model runs over these tokens."""
        self.metadata.on(device).prepare(rows, queries, causal=device.type in CAUSAL_DEVICES)


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


def current_context() -> AttentionContext | None:
    """What is in force now, in this thread."""
    return _current.get()


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
    layers: dict[Stream, dict[int, tuple[torch.Tensor, torch.Tensor]]] = defaultdict(dict)

    def keep(call: AttentionCall) -> None:  # and not the queries, which of a long text are as large again
        layer: LayerInfo = call.module.foreword_layer  # type: ignore[assignment]
        if layer.layer not in layers[layer.stream]:  # else it shares those of an earlier layer
            key_HPD, value_HPD = (part[0, :, :tokens].float().to(device) for part in (call.key, call.value))
            layers[layer.stream][layer.layer] = (key_HPD, value_HPD)

    with attention_context(AttentionContext(record=keep)):
        output = model(**inputs, use_cache=False)
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

        layer: LayerInfo | None = getattr(module, "foreword_layer", None)
        if state.ragged is not None and layer is not None:

            def attend(
                query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, mask: torch.Tensor | None
            ) -> torch.Tensor:
                if mask is not None and kernel == "eager":
                    mask = _additive(mask, query.dtype)
                return _attend(kernel, module, query, key, value, mask, False, kwargs)[0]

            return state.ragged.attend(layer.layer, query, key, value, attend), None
        stream: Stream = "decoder" if layer is None else layer.stream
        if layer is not None and layer.layer == 0:  # a new pass has new masks
            state.mask_cache.pop(stream, None)
        layout, mask, cache = state.layout, attention_mask, state.mask_cache[stream]
        causal = kernel == "sdpa" and mask is None and _is_causal(state, layer, module, query, kwargs)
        if layout is not None and layer is not None and causal:
            moved = layer.sliding_window is not None and state.metadata.beyond(layer.sliding_window)
            if not moved and varlen_takes(query, key, value):
                metadata = state.metadata.on(key.device)
                prefix, segments = metadata.prefix_layer(stream, layer.layer), metadata.segments(stream)
                return attend_varlen(query, key, value, prefix, segments, kwargs.get("scaling")), None
        if layout is not None:  # tokens end to end become rows, for attention alone
            query, key, value = (layout.to_rows(tensor) for tensor in (query, key, value))
        causal = causal and state.metadata.sees_all(stream, of_one_length=True)
        if layer is not None:
            query, key, value, mask = _with_prefix(
                state, layer, module, query, key, value, mask, causal, kwargs
            )
        if mask is not None and kernel == "eager" and mask.dtype == torch.bool:
            mask = _once(cache.additive, mask, lambda boolean: _additive(boolean, query.dtype))
        output, weights = _attend(kernel, module, query, key, value, mask, causal, kwargs)
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
    causal: bool,
    kwargs: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Query, keys and values with the prefix in front, and the mask that fits; T5's bias in `kwargs` too.

    Args:
        causal: the causal pattern, counted from the last key, is all that a mask would say: none is made.
    """
    prefixes, stream = state.prefixes, layer.stream
    if prefixes is None or stream not in prefixes.blocks:  # no row has a prefix in this stream
        return query, key_BHSD, value_BHSD, mask
    cache, metadata = state.mask_cache[stream], state.metadata.on(key_BHSD.device)
    length = prefixes.blocks[stream].longest
    if not state.in_cache:
        prefix_key_BHPD, prefix_value_BHPD = metadata.prefix_rows(stream, layer.layer, key_BHSD)
        key_BHSD = torch.cat([prefix_key_BHPD, key_BHSD], dim=2)
        value_BHSD = torch.cat([prefix_value_BHPD, value_BHSD], dim=2)
    if mask is None and not causal:
        mask = _mask_when_none(cache, module, query, key_BHSD.shape[2] - length)
    # Only the columns of the text come from transformers. Those of the prefix are ours: open for every token
    # of the row (an infix: from its target on), and closed where a row's prefix is shorter than P.
    if mask is not None:
        mask = _once(
            cache.extended,
            mask,
            lambda text: _open_columns(text, metadata.visible(stream, key_BHSD.shape[0], text.shape[2])),
        )
    bias = kwargs.get("position_bias")
    if bias is not None:  # a virtual token has no position, so it gets no bias
        kwargs["position_bias"] = _once(cache.bias, bias, lambda text: pad(text, (length, 0)))
    if layer.sliding_window is not None and state.metadata.beyond(layer.sliding_window):
        rope = layer.rope
        if rope is None:
            raise UnsupportedArchitecture(
                "a prefix is to stay within a sliding window's reach, but this model's positions "
                "can't be moved"
            )
        place = (layer.sliding_window, query.device)
        if place not in cache.beyond:
            cache.beyond[place] = metadata.steps_beyond(
                layer.sliding_window, kwargs["position_ids"], query.shape[0]
            )
        angles = _once(
            cache.angles[rope.layer_type],
            # One new token: the prefix moves forward, towards it. Several: each query moves back.
            cache.beyond[place],
            lambda steps: rope.angles(query, steps if query.shape[2] == 1 else -steps),
        )
        query, key_BHSD = move_prefix_near(rope, query, key_BHSD, length, angles, kwargs)
    return query, key_BHSD, value_BHSD, mask


def _is_causal(
    state: AttentionContext,
    layer: LayerInfo | None,
    module: nn.Module,
    query: torch.Tensor,
    options: Mapping[str, Any],
) -> bool:
    """Whether a layer that is passed no mask means the causal pattern, where a kernel knows that pattern.

    Every token sees what stands in front of it, all virtual tokens of its row among it. It is known without
    reading a mask: from what `_make_mask` has left out, and from the kinds of prefixes.
    """
    if layer is None or options.get("dropout") or options.get("position_bias") is not None:
        return False
    means = options.get("is_causal")
    return bool(getattr(module, "is_causal", True) if means is None else means) and (
        query.device.type in CAUSAL_DEVICES and state.metadata.sees_all(layer.stream, of_one_length=False)
    )


def _attend(
    kernel: Kernel,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    kwargs: Mapping[str, Any],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention of one layer, `[B, T, Q, D]`; all ways give the same, some with less memory or time.

    | the layer | computed by |
    |---|---|
    | eager, or a bias is added | the model's own function |
    | one query a row: a decoding step | `attend_one_query`: grouped keys are read once |
    | on a GPU, under the causal pattern | `attend_causally`: flash attention takes no mask |
    | no mask, or dropout | the model's own function |
    | on a CPU, query heads share keys | torch's kernel, which repeats no keys there |
    | anything else | transformers' SDPA function |

    A flat batch on a GPU goes to `attend_varlen` before it comes here, where that takes it.
    """
    own = _own_kernel(kernel, module)
    scaling = kwargs.get("scaling")
    if kernel != "eager" and kwargs.get("position_bias") is None:
        if query.shape[2] == 1:
            return attend_one_query(query, key, value, mask, scaling), None
        if causal and mask is None:
            return attend_causally(query, key, value, scaling), None
        # transformers repeats keys and values for every query head that shares them whenever there is
        # a mask: other devices need that. The CPU's kernel does not.
        if (
            mask is not None
            and not kwargs.get("dropout")
            and query.device.type == "cpu"
            and query.shape[1] != key.shape[1]
        ):
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


# -- masks -------------------------------------------------------------------------------------------


def _make_mask(**kwargs: Any) -> torch.Tensor | None:
    """transformers' boolean mask over the text alone, `[B, 1, T, S]`; prefix columns come later.

    A flat batch gets the mask of its rows, so that windows and causality are counted within a row. None where
    the causal pattern is all that there is to say and a kernel knows it.
    """
    state = _current.get()
    if state is None:
        return sdpa_mask(**kwargs)  # type: ignore[no-any-return]
    if state.ragged is not None:
        return None
    _begin_pass(state, kwargs)
    if state.prefixes is None and state.layout is None and kwargs["q_length"] > LONGEST_MASK:
        return sdpa_mask(**kwargs)  # type: ignore[no-any-return]
    if torch.device(kwargs.get("device", "cpu")).type in CAUSAL_DEVICES and state.metadata.is_causal(kwargs):
        return None
    return _mask_of_rows(state, kwargs)


def _make_eager_mask(**kwargs: Any) -> torch.Tensor | None:
    state = _current.get()
    if state is None:
        kwargs.update(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
        return _additive(sdpa_mask(**kwargs), kwargs["dtype"])
    if state.ragged is not None:
        return None
    _begin_pass(state, kwargs)
    return _mask_of_rows(state, kwargs)


def _begin_pass(state: AttentionContext, options: Mapping[str, Any]) -> None:
    """transformers makes masks once for a pass, before the first layer, and knows what was read before."""
    if state.prefixes is not None and state.prefixes.within_window:
        state.metadata.begin_pass(int(options.get("q_offset", 0)) + options["q_length"])


def _mask_of_rows(state: AttentionContext, kwargs: dict[str, Any]) -> torch.Tensor | None:
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
            attention_mask=layout.on(torch.device(kwargs["device"])).valid_BT,
        )
    return sdpa_mask(**kwargs)  # type: ignore[no-any-return]


def _open_columns(mask_B1TS: torch.Tensor, visible_BTP: torch.Tensor) -> torch.Tensor:
    """The mask with P columns in front, open where the row has a virtual token that the query sees."""
    columns = visible_BTP[:, None].expand(-1, 1, mask_B1TS.shape[2], -1)
    if mask_B1TS.dtype != torch.bool:
        columns = _additive(columns, mask_B1TS.dtype)
    rows, heads = columns.shape[0], mask_B1TS.shape[1]
    return torch.cat([columns.expand(-1, heads, -1, -1), mask_B1TS.expand(rows, -1, -1, -1)], dim=-1)


def _mask_when_none(cache: MaskCache, module: nn.Module, query: torch.Tensor, keys: int) -> torch.Tensor:
    """The mask over `keys` of the text that a layer means when it passes none: causal for its own text."""
    queries = query.shape[2]
    causal = bool(getattr(module, "is_causal", True)) and queries > 1
    place = (queries, keys, causal, query.device)
    if place not in cache.text:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
        if causal:
            mask = mask.tril(diagonal=keys - queries)
        cache.text[place] = mask[None, None].expand(query.shape[0], -1, -1, -1)
    return cache.text[place]


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    closed = torch.finfo(dtype).min
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, closed)


for _kernel, _name in IMPLEMENTATIONS.items():
    AttentionInterface.register(_name, _attention_function(_kernel))
    AttentionMaskInterface.register(_name, _make_mask if _kernel == "sdpa" else _make_eager_mask)
