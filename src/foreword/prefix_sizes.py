"""The sizes of a prefix's keys and values, and the names under which they go.

Layers of one size are one tensor, `decoder.key` `[L, H, P, D]`, whose place is "decoder". Where sizes differ
by layer, each layer has a tensor of its own, `decoder.key.3` `[H, P, D]`, whose place is "decoder.3". The
prefix file, `Prefix`, training and batches use the same names.

Shapes: L layers, H key/value heads, P prefix length, D head size.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from foreword.errors import GeometryMismatch

Stream = Literal["decoder", "encoder", "cross"]
STREAMS: tuple[Stream, ...] = get_args(Stream)

LayerSizes = tuple[int, int, int]
"""Key/value heads, key size and value size of one layer."""


@dataclass(frozen=True)
class StreamGeometry:
    """Sizes of one stream's keys `[layers, kv_heads, P, key_dim]` and values `[..., value_dim]`.

    `value_dim` differs from `key_dim` under multi-head latent attention (DeepSeek-V3), for instance. Where
    layers differ (Gemma 4), a size is one number for each layer; `of_layers` makes that form.

    Attributes:
        layers: those that have keys and values of their own. A layer that shares those of another (Gemma 3n
            and 4) is not counted.
    """

    layers: int
    kv_heads: int | tuple[int, ...]
    key_dim: int | tuple[int, ...]
    value_dim: int | tuple[int, ...]

    @classmethod
    def of_layers(cls, sizes_L: Sequence[LayerSizes]) -> StreamGeometry:
        """From the sizes of each layer; those in which all agree become one number."""
        columns = [tuple(column) for column in zip(*sizes_L, strict=True)]
        return cls(len(sizes_L), *(sizes if len(set(sizes)) > 1 else sizes[0] for sizes in columns))

    @property
    def by_layer(self) -> tuple[LayerSizes, ...]:
        """The sizes of each layer."""
        columns = (
            size if isinstance(size, tuple) else (size,) * self.layers
            for size in (self.kv_heads, self.key_dim, self.value_dim)
        )
        return tuple(zip(*columns, strict=True))

    @property
    def alike(self) -> LayerSizes | None:
        """The sizes of every layer; None where they differ by layer."""
        first, *others = dict.fromkeys(self.by_layer)
        return None if others else first

    def __str__(self) -> str:
        counts = Counter(self.by_layer)
        if len(counts) == 1:
            return f"{self.layers} layers x {_in_words(*self.by_layer[0])}"
        kinds = ", ".join(f"{count} of {_in_words(*sizes)}" for sizes, count in counts.items())
        return f"{self.layers} layers ({kinds})"


def _in_words(kv_heads: int, key_dim: int, value_dim: int) -> str:
    dims = f"{key_dim}" if key_dim == value_dim else f"{key_dim}/{value_dim}"
    return f"{kv_heads} key/value heads x {dims}"


@dataclass(frozen=True)
class Geometry:
    """The streams of a base model, in the order of `STREAMS`."""

    streams: Mapping[Stream, StreamGeometry]

    def __str__(self) -> str:
        return ", ".join(f"{name}: {stream}" for name, stream in self.streams.items())

    def parameters(self, length: int) -> int:
        """How many numbers a prefix of `length` virtual tokens has, over all streams."""
        layers = [layer for stream in self.streams.values() for layer in stream.by_layer]
        return sum(heads * length * (key_dim + value_dim) for heads, key_dim, value_dim in layers)

    def shapes(self, lengths: Mapping[Stream, int]) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """Shapes of the keys and of the values of each place, for a prefix of such lengths."""
        shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        for stream, length in lengths.items():
            sizes = self.streams[stream]
            for layer, (heads, key_dim, value_dim) in enumerate(sizes.by_layer):
                place = stream if sizes.alike else f"{stream}.{layer}"
                before = (sizes.layers,) if sizes.alike else ()
                shapes[place] = ((*before, heads, length, key_dim), (*before, heads, length, value_dim))
        return shapes

    def to_json(self) -> dict[str, Any]:
        """Plain data for the prefix file."""
        return {
            name: {
                field: list(size) if isinstance(size, tuple) else size
                for field, size in dataclasses.asdict(stream).items()
            }
            for name, stream in self.streams.items()
        }


# -- names -------------------------------------------------------------------------------------------

_TENSOR = re.compile(rf"({'|'.join(STREAMS)})\.(key|value)(\.(?:0|[1-9][0-9]*))?")


def tensor_name(place: str, part: str) -> str:
    """`decoder.key` of "decoder" and "key"; of one layer's place, "decoder.3", `decoder.key.3`."""
    stream, dot, layer = place.partition(".")
    return f"{stream}.{part}{dot}{layer}"


def tensor_names(
    key_values: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
) -> dict[str, torch.Tensor]:
    """Keys and values by place, as tensors by name."""
    return {
        tensor_name(place, part): states
        for place, pair in key_values.items()
        for part, states in zip(("key", "value"), pair, strict=True)
    }


def stream_of(place: str) -> Stream:
    """The stream of "decoder" or "decoder.3"."""
    return place.partition(".")[0]  # type: ignore[return-value]


def layer_of(place: str) -> int | None:
    """The layer of "decoder.3"; None for "decoder", which is all of them."""
    return int(place.partition(".")[2]) if "." in place else None


# -- tensors -----------------------------------------------------------------------------------------


def check_tensors(tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse tensors that are not the keys and values of a prefix.

    Raises:
        GeometryMismatch: a name, a shape or a type; says which.
    """
    matches = {name: _TENSOR.fullmatch(name) for name in tensors}
    if not tensors or None in matches.values():
        known = sorted(f"{stream}.{part}" for stream in STREAMS for part in ("key", "value"))
        raise GeometryMismatch(
            f"tensors are named {sorted(tensors)}; expected pairs out of {known}, or such pairs by layer "
            "(decoder.key.0, decoder.value.0, ...)"
        )
    for name, tensor in tensors.items():
        stream, part, layer = matches[name].groups()  # type: ignore[union-attr]
        other = f"{stream}.{'value' if part == 'key' else 'key'}{layer or ''}"
        partner = tensors.get(other)
        if partner is None:
            raise GeometryMismatch(f"{name} stands alone; expected {other} beside it")
        sizes = "[layers, kv_heads, P, head_dim]" if layer is None else "[kv_heads, P, head_dim]"
        if (
            tensor.ndim != (4 if layer is None else 3)
            or tensor.shape[:-1] != partner.shape[:-1]
            or 0 in tensor.shape
        ):
            raise GeometryMismatch(
                f"{name} is {list(tensor.shape)} beside {list(partner.shape)}; expected "
                f"{sizes}, alike but for the last"
            )
        alike = tensor.dtype == next(iter(tensors.values())).dtype
        if not alike or not tensor.is_floating_point() or tensor.dtype.itemsize < 2:
            raise GeometryMismatch(
                f"{name} is {tensor.dtype}; expected one floating-point type of 16 bits or more for all"
            )
    for stream in STREAMS:
        _check_layers(stream, {name: t for name, t in tensors.items() if name.startswith(f"{stream}.")})


def _check_layers(stream: Stream, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse tensors by layer that leave one out, are of several lengths, or would be one tensor."""
    count = len(tensors) // 2
    expected = {f"{stream}.{part}.{layer}" for part in ("key", "value") for layer in range(count)}
    if not tensors or set(tensors) == {f"{stream}.key", f"{stream}.value"}:
        return
    if set(tensors) != expected:
        raise GeometryMismatch(f"tensors are named {sorted(tensors)}; expected {sorted(expected)}")
    if len(lengths := {tensor.shape[1] for tensor in tensors.values()}) > 1:
        raise GeometryMismatch(f"{stream} has layers of the lengths {sorted(lengths)}; expected one for all")
    sizes = {(tensors[f"{stream}.key.{n}"].shape, tensors[f"{stream}.value.{n}"].shape) for n in range(count)}
    if len(sizes) == 1:
        raise GeometryMismatch(
            f"the layers of {stream} have a tensor each and are of one size; expected one tensor for all, "
            f"{stream}.key and {stream}.value of [layers, kv_heads, P, head_dim]"
        )


def first_place(tensors: Mapping[str, torch.Tensor], stream: Stream) -> str | None:
    """Where the first keys of a stream are: "decoder", or "decoder.0" where sizes differ by layer."""
    return next((place for place in (stream, f"{stream}.0") if tensor_name(place, "key") in tensors), None)
