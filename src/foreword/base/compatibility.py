"""Whether a model can carry a prefix: found out from a few tokens when it is loaded, before any work.

`probe` learns from one tiny pass which attention modules a model has, and their sizes. Names of modules
differ by architecture; what is common is the call. A model of which some layer does not ask for our
function, or calls it in another number than its config says, is refused rather than served wrongly.

That every layer asks for our attention function does not say that the model works: it can count positions
on its own, carry a state beside attention, or make its own mask. `check_prefix_effect` tries three tokens.
Decoder-only: keys and values of a text's first token, given as a prefix to the tokens behind it, must give
the logits of the whole text. That is exact for attention, and false for everything else. The rows are tried
end to end, one with and one without, so that they are shown not to meet. Hybrids, whose other layers keep a
state of the text, have a trial of their own (hybrid.py). Encoder-decoder: each stream must
have an effect, on its own row only, and the decoder stay causal. There a prefix stands for no tokens (it
does not move the text), so no text can be compared with.

Trials are computed in float32 whatever the weights are kept in: in 16 bits, rounding hides what is wrong.

`enable_window_shift` tries whether a prefix can stay within the reach of sliding windows.

Shapes: B rows, T text tokens, H key/value heads, D head size, V vocabulary, L layers.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from foreword.base.attention import (
    AttentionContext,
    LayerInfo,
    attention_context,
    capture_attention,
    capture_kv,
)
from foreword.base.batch import Layout, decoder_batch, encoder_decoder_batch
from foreword.base.float32 import in_float32, trial_numbers
from foreword.base.hybrid import attention_layers, try_hybrid
from foreword.base.prefix_batch import PrefixBatch
from foreword.base.rope import CHANGING
from foreword.base.sliding_window import RopeShift
from foreword.encoding import EncodedExample
from foreword.errors import UnsupportedArchitecture
from foreword.prefix_sizes import STREAMS, Geometry, LayerSizes, Stream, StreamGeometry, stream_of

# Different lengths for encoder and decoder text tell the three streams apart by shape alone.
_ENCODER_TOKENS, _DECODER_TOKENS = 3, 2


@dataclass(frozen=True)
class _Call:
    module: nn.Module
    stream: Stream
    key: torch.Tensor
    sizes: LayerSizes
    sliding_window: int | None


def probe(model: Any) -> Geometry:
    """Set `foreword_layer` on every attention module and return the geometry.

    Raises:
        UnsupportedArchitecture: an attention layer that does not take our function, layers that share a
            module, or a model without attention.
    """
    calls = _calls(model)
    _check_counts(model, calls)
    seen: dict[Stream, list[_Call]] = {}
    shares = getattr(model.config.get_text_config(decoder=True), "num_kv_shared_layers", 0)
    for call in calls:
        of_stream = seen.setdefault(call.stream, [])
        # A layer that shares keys and values of the text (Gemma 3n, Gemma 4) shares their prefix: so it is in
        # a cache that holds the prefix, and so PEFT and vLLM have it.
        same = (n for n, each in enumerate(of_stream) if shares and _same(each.key, call.key))
        layer = next(same, len(of_stream))
        call.module.foreword_layer = LayerInfo(call.stream, layer, call.sliding_window)  # type: ignore
        if layer == len(of_stream):
            of_stream.append(call)
    return Geometry(
        {
            stream: StreamGeometry.of_layers([call.sizes for call in seen[stream]])
            for stream in STREAMS
            if stream in seen
        }
    )


def _same(key: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether a layer was handed the keys of another, if need be on its own device."""
    copied = key.device != other.device and key.shape == other.shape
    return key is other or (copied and torch.equal(key.cpu(), other.cpu()))


def _calls(model: Any) -> list[_Call]:
    encoder_decoder = model.config.is_encoder_decoder
    device = model.get_input_embeddings().weight.device
    # Of more than one token, a hybrid looks into the mask for padding, and on the meta device it can't.
    tokens = _DECODER_TOKENS if attention_layers(model.config) is None else 1
    decoder_ids = torch.zeros(1, tokens, dtype=torch.long, device=device)
    inputs = {"input_ids": decoder_ids}
    if encoder_decoder:
        encoder_ids = torch.zeros(1, _ENCODER_TOKENS, dtype=torch.long, device=device)
        inputs = {"input_ids": encoder_ids, "decoder_input_ids": decoder_ids}
    # Without a mask transformers looks into the tokens for the ends of packed texts, and on the meta device
    # there are none.
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        _, recorded = capture_attention(model, inputs)
    calls = []
    for call in recorded:
        lengths = (call.query.shape[2], call.key.shape[2])
        stream: Stream = "decoder"
        if encoder_decoder and lengths == (_ENCODER_TOKENS, _ENCODER_TOKENS):
            stream = "encoder"
        elif encoder_decoder and lengths == (_DECODER_TOKENS, _ENCODER_TOKENS):
            stream = "cross"
        sizes = (call.key.shape[1], call.key.shape[3], call.value.shape[3])
        calls.append(_Call(call.module, stream, call.key, sizes, call.options.get("sliding_window")))
    return calls


def _check_counts(model: Any, calls: list[_Call]) -> None:
    counts = Counter(call.stream for call in calls)
    hybrid = attention_layers(model.config)
    expected: dict[Stream, int] = {
        "decoder": _layers(model.config, "decoder") if hybrid is None else len(hybrid)
    }
    if model.config.is_encoder_decoder:
        expected["encoder"] = _layers(model.config, "encoder")
        expected["cross"] = expected["decoder"]
    if counts != expected or not calls:
        counted = ", ".join(f"{counts[s]} of {n} {s}" for s, n in expected.items())
        raise UnsupportedArchitecture(
            f"{name(model)}: {counted} attention layers take a prefix. Foreword needs a transformer whose "
            "attention goes through transformers' attention interface, in every layer or, in a hybrid, in "
            "those that keep keys and values in transformers' cache"
        )
    if len({id(call.module) for call in calls}) < len(calls):
        raise UnsupportedArchitecture(
            f"{name(model)}: layers share one attention module; Foreword needs one for each, to tell which "
            "layer's keys and values to put in front"
        )


def _layers(config: Any, side: str) -> int:
    """Layers of the encoder or the decoder, by any of the names that configurations have for it."""
    own = getattr(config, side, None)  # a configuration for each side
    if own is not None and hasattr(own, "num_hidden_layers"):
        return int(own.num_hidden_layers)
    for field in (f"{side}_layers", f"num_{side}_layers"):
        if isinstance(getattr(config, field, None), int):
            return int(getattr(config, field))
    return int(config.get_text_config(decoder=side == "decoder", encoder=side == "encoder").num_hidden_layers)


def name(model: Any) -> str:
    """The model's class and type, for messages."""
    return f"{type(model).__name__} (model type {model.config.model_type})"


# -- whether a prefix does what it should -----------------------------------------------------------


_IDS = (1, 2, 3)

# Settings with which a model does something that no three tokens can show.
_UNSHOWN = {
    "attn_temperature_tuning": "attention counts the text's positions without the prefix",
    "expert_capacity": "experts take so many tokens of a batch and drop others, so rows depend on each other",
}


def check_config(model: Any) -> None:
    """Refuse settings with which a model does something that no short trial can show.

    Raises:
        UnsupportedArchitecture: names the setting.
    """
    config = model.config.get_text_config(decoder=True)
    for field, reason in _UNSHOWN.items():
        if getattr(config, field, None):
            raise UnsupportedArchitecture(f"{name(model)} has {field} on: {reason}")


def check_prefix_effect(model: Any, *, positions: bool, farthest: int | None = None) -> None:
    """Try a prefix of one token on a probed model.

    Args:
        positions: whether the model takes `position_ids`.
        farthest: positions that it has for prefix and text; None: unlimited.

    Raises:
        UnsupportedArchitecture: the result is not what attention alone would give.
    """
    numbers, slack = trial_numbers(model)
    with torch.no_grad(), numbers:
        try:
            if model.config.is_encoder_decoder:
                _try_encoder_decoder(model, slack)
            elif attention_layers(model.config) is not None:
                try_hybrid(model, name(model), slack, positions=positions, farthest=farthest)
            else:
                _try_decoder(model, positions, slack, farthest)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise UnsupportedArchitecture(f"{name(model)} fails with a prefix in front: {error}") from error


def _try_decoder(model: Any, positions: bool, slack: float, farthest: int | None) -> None:
    device = model.get_input_embeddings().weight.device
    output, first = capture_kv(model, {"input_ids": torch.tensor([_IDS], device=device)}, 1)
    text = EncodedExample(_IDS[1:2], (*_IDS[2:], 0))
    rows, offsets = [text, text], [1, 1]
    layout: Layout = "flat" if positions else "right"
    if positions and farthest is not None:  # beside a long row's last token: angles must not depend on it
        # Texts that begin with a higher id are packed later, so those that are looked at stay in front.
        rows, offsets = [*rows, EncodedExample(_IDS[2:], (0,))], [*offsets, farthest - 1]
    prefixes = PrefixBatch.from_tensors([first], (0, None, None)[: len(rows)])
    groups = [None] * len(rows)
    batch = decoder_batch(rows, offsets, groups, layout=layout, device=device, positions=positions)
    with attention_context(AttentionContext(prefixes=prefixes, layout=batch.layout)):
        logits = model(**batch.inputs, use_cache=False).logits
    tokens = len(_IDS) - 1
    with_prefix_TV, without_TV = logits.flatten(0, 1)[: 2 * tokens].reshape(2, tokens, -1)
    whole_TV = output.logits[0, 1:]
    error, effect = (float((found - whole_TV).norm()) for found in (with_prefix_TV, without_TV))
    if not error <= (0.01 + 10 * slack) * effect + (1e-5 + slack) * float(whole_TV.norm()):  # nor NaN
        raise UnsupportedArchitecture(
            f"{name(model)}: a prefix does not do what the tokens it was taken from do (difference "
            f"{error:.2g}, effect of the tokens {effect:.2g}). Something beside attention carries the text, "
            "or the model counts positions or makes masks on its own, or turns queries and keys by the "
            "length of other rows"
        )


def _try_encoder_decoder(model: Any, slack: float) -> None:
    device = model.get_input_embeddings().weight.device
    start_id = model.config.decoder_start_token_id or 0
    of_one_row = encoder_decoder_batch([EncodedExample(_IDS, (1, 0))], start_id=start_id, device=device)
    output, first = capture_kv(model, of_one_row.inputs, 1)
    streams = list(dict.fromkeys(map(stream_of, first)))
    # One row for each stream alone, one without any, and one with all streams and another last token.
    whole = {place: (key, -value) for place, (key, value) in first.items()}
    apart = [{place: whole[place] for place in whole if stream_of(place) == stream} for stream in streams]
    last = len(streams)
    of_row = (*range(last), None, last, last)
    prefixes = PrefixBatch.from_tensors([*apart, whole], of_row)
    rows = [EncodedExample(_IDS, (1, 0))] * (last + 2) + [EncodedExample(_IDS, (2, 0))]
    batch = encoder_decoder_batch(rows, start_id=start_id, device=device)
    with attention_context(AttentionContext(prefixes=prefixes)):
        logits_BTV = model(**batch.inputs, use_cache=False).logits

    def same(one: torch.Tensor, other: torch.Tensor) -> bool:
        return float((one - other).norm()) <= (1e-4 + slack) * float(other.norm())

    plain_TV, all_TV, other_TV = logits_BTV[last], logits_BTV[last + 1], logits_BTV[last + 2]
    idle = [stream for row, stream in enumerate(streams) if torch.equal(logits_BTV[row], plain_TV)]
    faults = {
        f"a prefix in {', '.join(idle)} attention changes nothing": bool(idle),
        "a row without a prefix is changed by its neighbours' prefixes": not same(plain_TV, output.logits[0]),
        "with a prefix, a token is changed by the tokens behind it": not same(all_TV[0], other_TV[0]),
    }
    if any(faults.values()):
        listed = "; ".join(fault for fault, there in faults.items() if there)
        raise UnsupportedArchitecture(f"{name(model)}: {listed}. Its attention takes no prefix as it is")


# -- whether a prefix can stay within the reach of sliding windows -----------------------------------


def enable_window_shift(model: Any) -> bool:
    """Tell every layer with a sliding window how to move queries and keys; whether all can.

    False for a model without such layers, and for one whose positions can't be moved.
    """
    windowed, embeddings = sliding_windows(model), rotary_embeddings(model, beyond=True)
    if not windowed or not embeddings:
        return False
    window = max(module.foreword_layer.sliding_window for module in windowed)
    at_start, further = (_states(model, first) for first in (0, 2 * window))
    _, slack = trial_numbers(model)
    if not at_start:
        return False
    for rotary in embeddings:
        shifts = {m: shift for m in windowed if (shift := _rope_shift(model, rotary, m)) is not None}
        if len(shifts) == len(windowed) and all(
            _moves(shift, at_start[module], further[module], 2 * window, slack)
            for module, shift in shifts.items()
        ):
            for module, shift in shifts.items():
                module.foreword_layer = dataclasses.replace(module.foreword_layer, rope=shift)
            return True
    return False


def sliding_windows(model: Any) -> list[Any]:
    """The attention modules of a probed decoder-only model whose window slides."""
    if model.config.is_encoder_decoder:
        return []
    no_layer = LayerInfo("decoder", 0)
    return [m for m in model.modules() if getattr(m, "foreword_layer", no_layer).sliding_window]


def rotary_embeddings(model: Any, *, beyond: bool = False) -> list[nn.Module]:
    """The modules of a decoder that make angles of positions.

    Args:
        beyond: only those whose angles stay the same beyond the positions that texts have.
    """
    embeddings = []
    for module in model.get_decoder().modules():  # an image's encoder has rotations of its own
        kind = getattr(module, "rope_type", "default")
        kinds = set(kind.values()) if isinstance(kind, Mapping) else {kind}
        fits = not beyond or kinds.isdisjoint(CHANGING)
        if "RotaryEmbedding" in type(module).__name__ and fits:
            embeddings.append(module)
    return embeddings


def _rope_shift(model: Any, rotary: nn.Module, module: nn.Module) -> RopeShift | None:
    apply = rotation(module)
    if apply is None or "position_ids" not in inspect.signature(rotary.forward).parameters:
        return None
    return RopeShift(rotary, apply, rotary_layer_type(model, rotary, module))


def rotary_layer_type(model: Any, rotary: nn.Module, module: nn.Module) -> str | None:
    """What a rotary embedding wants to be told of an attention module's layer; None: nothing."""
    if "layer_type" not in inspect.signature(rotary.forward).parameters:
        return None
    types, hybrid = model.config.get_text_config(decoder=True).layer_types, attention_layers(model.config)
    layer: int = module.foreword_layer.layer  # type: ignore[assignment, union-attr]
    return str(types[layer if hybrid is None else hybrid[layer]])


def rotation(module: nn.Module) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] | None:
    """How the model rotates states by cosines and sines; None where it is done in no known way."""
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
    device = model.get_input_embeddings().weight.device
    inputs = {
        "input_ids": torch.zeros(1, 2, dtype=torch.long, device=device),
        "attention_mask": torch.ones(1, 2, dtype=torch.long, device=device),
        "position_ids": torch.arange(first, first + 2, device=device)[None],
    }
    with torch.no_grad(), trial_numbers(model)[0]:
        _, calls = capture_attention(model, inputs)
    return {
        call.module: torch.cat([call.query, call.key], dim=1)
        for call in calls
        if call.options.get("position_ids") is not None  # by which attention knows how far a query is
    }


def _moves(shift: RopeShift, at_start: torch.Tensor, further: torch.Tensor, steps: int, slack: float) -> bool:
    """Whether a shift by `steps` makes of the states at the start those of the same text further on."""
    with torch.no_grad(), in_float32():
        steps_12 = torch.full((1, 2), steps, device=at_start.device)
        moved = shift.move(at_start, shift.angles(at_start, steps_12))
    return float((moved - further).norm()) <= (1e-3 + slack) * float(further.norm())
