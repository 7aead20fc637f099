"""Probe: learn from one tiny forward pass which attention modules a model has, and their sizes.

Names of modules differ by architecture; what is common is the call. A model of which some layer
does not ask for our function, or calls it in another number than its config says, is refused here,
before any work, rather than served wrongly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from foreword.base.attention import Attending, Slot, attending
from foreword.errors import UnsupportedArchitecture
from foreword.geometry import STREAMS, Geometry, Stream, StreamGeometry

# Different lengths for encoder and decoder text tell the three streams apart by shape alone.
_ENCODER_TOKENS, _DECODER_TOKENS = 3, 2


@dataclass(frozen=True)
class _Call:
    module: nn.Module
    stream: Stream
    sizes: tuple[int, int, int]  # key/value heads, key size, value size
    window: int | None


def probe(model: Any) -> Geometry:
    """Set `foreword_slot` on every attention module and return the geometry.

    Raises:
        UnsupportedArchitecture: an attention layer that does not take our function, layers of
            different sizes or that share a module, or a model without attention.
    """
    calls = _record(model)
    _check_counts(model, calls)
    seen: dict[Stream, list[_Call]] = {}
    for call in calls:
        same_stream = seen.setdefault(call.stream, [])
        call.module.foreword_slot = Slot(call.stream, len(same_stream), call.window)  # type: ignore[assignment]
        same_stream.append(call)
    for stream, found in seen.items():
        if len({call.sizes for call in found}) > 1:
            raise UnsupportedArchitecture(
                f"{name(model)}: {stream} layers differ in heads or head size "
                f"({sorted({call.sizes for call in found})}); a prefix has one size for all layers"
            )
    return Geometry(
        {
            stream: StreamGeometry(len(seen[stream]), *seen[stream][0].sizes)
            for stream in STREAMS
            if stream in seen
        }
    )


def _record(model: Any) -> list[_Call]:
    encoder_decoder = model.config.is_encoder_decoder
    calls: list[_Call] = []

    def record(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: Mapping[str, Any],
    ) -> None:
        lengths = (query.shape[2], key.shape[2])
        stream: Stream = "decoder"
        if encoder_decoder and lengths == (_ENCODER_TOKENS, _ENCODER_TOKENS):
            stream = "encoder"
        elif encoder_decoder and lengths == (_DECODER_TOKENS, _ENCODER_TOKENS):
            stream = "cross"
        sizes = (key.shape[1], key.shape[3], value.shape[3])
        calls.append(_Call(module, stream, sizes, options.get("sliding_window")))

    device = model.get_input_embeddings().weight.device
    decoder_ids = torch.zeros(1, _DECODER_TOKENS, dtype=torch.long, device=device)
    inputs = {"input_ids": decoder_ids}
    if encoder_decoder:
        encoder_ids = torch.zeros(1, _ENCODER_TOKENS, dtype=torch.long, device=device)
        inputs = {"input_ids": encoder_ids, "decoder_input_ids": decoder_ids}
    with torch.no_grad(), attending(Attending(record=record)):
        model(**inputs, use_cache=False)
    return calls


def _check_counts(model: Any, calls: list[_Call]) -> None:
    found = Counter(call.stream for call in calls)
    expected: dict[Stream, int] = {"decoder": _layers(model.config, "decoder")}
    if model.config.is_encoder_decoder:
        expected["encoder"] = _layers(model.config, "encoder")
        expected["cross"] = expected["decoder"]
    if found != expected:
        counted = ", ".join(f"{found[s]} of {n} {s}" for s, n in expected.items())
        raise UnsupportedArchitecture(
            f"{name(model)}: {counted} attention layers take a prefix. Foreword needs a transformer whose "
            "attention goes through transformers' attention interface; state-space, hybrid and other "
            "models without keys and values in every layer can't carry one"
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
