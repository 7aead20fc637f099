"""Geometry: the sizes that a prefix must share with its base model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Stream = Literal["decoder", "encoder", "cross"]
STREAMS: tuple[Stream, ...] = get_args(Stream)


@dataclass(frozen=True)
class StreamGeometry:
    """Sizes of one stream's keys `[layers, kv_heads, P, key_dim]` and values `[..., value_dim]`.

    `value_dim` differs from `key_dim` only under multi-head latent attention (DeepSeek-V3).
    """

    layers: int
    kv_heads: int
    key_dim: int
    value_dim: int

    def __str__(self) -> str:
        dims = f"{self.key_dim}" if self.key_dim == self.value_dim else f"{self.key_dim}/{self.value_dim}"
        return f"{self.layers} layers x {self.kv_heads} key/value heads x {dims}"


@dataclass(frozen=True)
class Geometry:
    """The streams of a base model, in the order of `STREAMS`."""

    streams: Mapping[Stream, StreamGeometry]

    def __str__(self) -> str:
        return ", ".join(f"{name}: {stream}" for name, stream in self.streams.items())

    def parameters(self, length: int) -> int:
        """How many numbers a prefix of `length` virtual tokens has, over all streams."""
        return sum(s.layers * s.kv_heads * length * (s.key_dim + s.value_dim) for s in self.streams.values())

    def to_json(self) -> dict[str, Any]:
        """Plain data for the prefix file."""
        return {name: dataclasses.asdict(stream) for name, stream in self.streams.items()}
