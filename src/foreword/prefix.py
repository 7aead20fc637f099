"""Prefix: keys and values of P virtual tokens for every layer, and what they belong to.

The value knows neither models nor training. Keys are as the attention kernel sees them, after the rotary
embedding, and the text starts at position P.

Shapes: L layers, H key/value heads, P prefix length, D head size.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from foreword import files, prefix_file
from foreword.errors import GeometryMismatch, NonFinitePrefix, UnsupportedGeometry, UsageError, WrongBaseModel
from foreword.prefix_file import Header
from foreword.prefix_sizes import STREAMS as STREAMS  # the four stood here before
from foreword.prefix_sizes import Geometry as Geometry
from foreword.prefix_sizes import LayerSizes, check_tensors, first_place, stream_of, tensor_name
from foreword.prefix_sizes import Stream as Stream
from foreword.prefix_sizes import StreamGeometry as StreamGeometry
from foreword.template import RAW, Template
from foreword.validation import check_fields, checks_arguments, is_text_mapping

Made = TypeVar("Made")
Positions = Literal["text-after-prefix", "text-after-prefix-within-window"]


@dataclass(frozen=True)
class BaseIdentity:
    """Which base model a prefix belongs to.

    Attributes:
        name: alias, hub id or folder name, for people.
        revision: commit on the hub, where there is one.
        fingerprint: digest of the weights; None only for imports whose origin does not say.
    """

    name: str
    revision: str | None = None
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def shown_name(self) -> str:
        """The name for messages, which other people may read: of a folder's path the last part."""
        path = os.path.expanduser(self.name)
        is_folder = os.path.isabs(path) or os.path.isdir(path)
        return os.path.basename(os.path.abspath(path)) if is_folder else self.name


@dataclass(frozen=True)
class Origin:
    """How a prefix was made; for people and for reproducing it, read by no other code.

    Attributes:
        parameterization: what was trained, e.g. "mlp(512)+start".
        initialization: what it started from, e.g. "demonstrations".
        data_digest: SHA-256 over the training examples.
        steps: optimiser steps up to the step that was kept.
        dev_loss: mean loss per target token on the dev examples at that step, in nats.
    """

    parameterization: str | None = None
    initialization: str | None = None
    seed: int | None = None
    data_digest: str | None = None
    examples: int | None = None
    steps: int | None = None
    dev_loss: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, eq=False)
class Prefix:
    """The learned artefact.

    Two prefixes are equal when all below is, keys and values to the last bit; of equal prefixes that were
    read from files of different versions, each keeps its own file's digest.

    Attributes:
        tensors: "decoder.key", "decoder.value" (and "encoder.*", "cross.*"), each [L, H, P, D]. Where sizes
            differ by layer, "decoder.key.0", "decoder.value.0" and so on, each [H, P, D].
        base: the base model it belongs to.
        template: how a source becomes text in front of the target.
        positions: where the text stands. `text-after-prefix`: it starts at position P, and every layer
            sees the prefix from there, however far it is. `text-after-prefix-within-window`: the same,
            but a layer with a sliding window never sees the prefix from farther than its window reaches
            (docs/sliding-window.md).
        origin: how it was made.
        created: time of creation, UTC, ISO 8601.
        licence: SPDX name or free text.
        labels: free-form notes of the user.
        template_digest: `Template.rendering_digest` with the base's tokenizer.
        template_rendering: `Template.rendering` with it, of which a warning tells what has changed.
        report: what was measured: "dev_loss", "recovered_share", "harm" and whatever else there is.
        recipe: how to make it again: JSON of any form.
        extra: fields of a newer format that this release may ignore; saved again as they are.

    Raises:
        UsageError: a field of another type.
        GeometryMismatch: shapes that do not belong together.
        NonFinitePrefix: NaN or infinity in a tensor.
    """

    tensors: Mapping[str, torch.Tensor]
    base: BaseIdentity
    template: Template = RAW
    origin: Origin = Origin()
    created: str = field(default_factory=lambda: _now())
    licence: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    positions: Positions = "text-after-prefix"
    template_digest: str | None = None
    template_rendering: str | None = None
    report: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    # Of the file that it was read from: as long as nothing changes, it is saved again byte for byte, in the
    # version it had, and keeps the identity under which stores and results name it.
    _file: Header | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.positions not in prefix_file.POSITIONS:
            raise UsageError(
                f"positions is {self.positions!r}; expected {' or '.join(prefix_file.POSITIONS)}"
            )
        if not is_text_mapping(self.labels) or not isinstance(self.created, str):
            raise UsageError(
                f"labels are {self.labels!r}, created is {self.created!r}; expected text to text, text"
            )
        if not isinstance(self.licence, str | None):
            raise UsageError(f"licence is {self.licence!r}; expected text")
        for name in ("labels", "report", "recipe", "extra"):
            prefix_file.check_open_mapping(name, getattr(self, name))
        if known := sorted(prefix_file.FIELDS & set(self.extra)):
            raise UsageError(f"extra has {', '.join(known)}; expected fields that this release does not know")
        frozen = {
            name: t.detach().to("cpu", copy=True).contiguous() for name, t in sorted(self.tensors.items())
        }
        object.__setattr__(self, "tensors", frozen)
        check_tensors(frozen)
        for name, tensor in frozen.items():
            if not torch.isfinite(tensor).all():
                bad = int((~torch.isfinite(tensor)).sum())
                raise NonFinitePrefix(
                    f"{name} holds {bad} values that are NaN or infinite, of {tensor.numel()}; "
                    "expected finite numbers. Train again with a lower learning rate, or restore a good copy"
                )

    # -- what it holds -------------------------------------------------------------------------

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The streams that have keys and values, in the order decoder, encoder, cross."""
        return tuple(stream for stream in STREAMS if first_place(self.tensors, stream) is not None)

    def key(self, stream: Stream = "decoder") -> torch.Tensor:
        """Keys of one stream, `[L, H, P, D]`, after the rotary embedding.

        Raises:
            UsageError: no such stream, or sizes that differ by layer; then there is `layers`.
        """
        return self._tensor(stream, "key")

    def value(self, stream: Stream = "decoder") -> torch.Tensor:
        """Values of one stream, `[L, H, P, D]`. Raises as `key`."""
        return self._tensor(stream, "value")

    def layers(self, stream: Stream = "decoder") -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """Keys and values `[H, P, D]` of each layer of one stream, whether or not their sizes differ.

        Raises:
            UsageError: no such stream.
        """
        self._check_stream(stream)
        if f"{stream}.key" in self.tensors:
            return tuple(zip(self.key(stream), self.value(stream), strict=True))
        return tuple(pair for place, pair in self.key_values().items() if stream_of(place) == stream)

    def key_values(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values by place (prefix_sizes.py): "decoder" `[L, H, P, D]`, "decoder.0" `[H, P, D]`."""
        places = []
        for stream in self.streams:
            layers = sum(name.startswith(f"{stream}.key.") for name in self.tensors)
            places += [f"{stream}.{layer}" for layer in range(layers)] or [str(stream)]
        return {
            place: (self.tensors[tensor_name(place, "key")], self.tensors[tensor_name(place, "value")])
            for place in places
        }

    def stream_length(self, stream: Stream) -> int:
        """Number of virtual tokens in one stream; 0 when the prefix has nothing there."""
        place = first_place(self.tensors, stream)
        return 0 if place is None else int(self.tensors[tensor_name(place, "key")].shape[-2])

    @property
    def length(self) -> int:
        """Prefix length P of the decoder; of an encoder-decoder's longest stream without one."""
        return self.stream_length("decoder") or max(self.stream_length(s) for s in self.streams)

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the stored numbers."""
        return next(iter(self.tensors.values())).dtype

    @property
    def geometry(self) -> Geometry:
        """Sizes without P, to be compared with a base model's."""
        sizes: dict[Stream, list[LayerSizes]] = {stream: [] for stream in self.streams}
        for place, (key, value) in self.key_values().items():
            layers = 1 if place != stream_of(place) else key.shape[0]
            sizes[stream_of(place)] += [(key.shape[-3], key.shape[-1], value.shape[-1])] * layers
        return Geometry({stream: StreamGeometry.of_layers(of_stream) for stream, of_stream in sizes.items()})

    def numel(self) -> int:
        """How many numbers it holds."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    def _tensor(self, stream: Stream, part: str) -> torch.Tensor:
        self._check_stream(stream)
        if f"{stream}.{part}" not in self.tensors:
            raise UsageError(
                f"the sizes of this prefix differ by layer ({self.geometry}), so its {part}s are not one "
                f"tensor; take prefix.layers({stream!r}), which has keys and values of each layer"
            )
        return self.tensors[f"{stream}.{part}"]

    def _check_stream(self, stream: Stream) -> None:
        if stream not in self.streams:
            raise UsageError(f"this prefix has no stream {stream!r}; it has {', '.join(self.streams)}")

    # -- identity ------------------------------------------------------------------------------

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the file, in hex: the prefix's identity."""
        return self._content_digest if self._file is None else hashlib.sha256(self._encode()).hexdigest()

    @functools.cached_property
    def _content_digest(self) -> str:
        """SHA-256 of what would be written if it had never been a file."""
        return hashlib.sha256(prefix_file.encode(self.tensors, self._description())).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prefix) and self._content_digest == other._content_digest

    def __hash__(self) -> int:
        return hash(self._content_digest)

    def __repr__(self) -> str:
        lengths = {s: self.stream_length(s) for s in self.streams}
        length = self.length if set(lengths.values()) == {self.length} else lengths
        dtype = str(self.dtype).removeprefix("torch.")
        parts = [f"length={length}", f"base={self.base.name!r}", f"{self.geometry}", dtype]
        if self.origin.dev_loss is not None:
            parts.append(f"dev_loss={self.origin.dev_loss:.4f}")
        parts.append(f"digest={self.digest[:12]}")
        return f"Prefix({', '.join(parts)})"

    # -- files ---------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """The content of the prefix file: as it was read, or of the newest version if anything is new.

        Raises:
            UsageError: more labels, text or report than the format holds.
        """
        if self._file is None:
            prefix_file.check_description(self._description())
        content = self._encode()
        if self._file is None:
            prefix_file.check_writable(content)
        return content

    @checks_arguments
    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the prefix file: whole, or not at all.

        Raises:
            UsageError: more labels, text or report than the format holds, or no path.
            OutputExists: the file is there and `overwrite` is false.
            CannotWrite: no right, no space, no such folder.
        """
        files.write_bytes(Path(path), self.to_bytes(), overwrite=overwrite)

    @classmethod
    @checks_arguments
    def load(cls, path: str | os.PathLike[str]) -> Prefix:
        """Read a prefix file and check all that can be checked without its base model.

        Raises:
            UsageError: no path.
            CannotRead, NotAPrefixFile, TruncatedPrefix, UnsupportedVersion, UnsupportedGeometry,
            GeometryMismatch, NonFinitePrefix: each says what was found, what was expected and what to do.
        """
        return cls.from_bytes(prefix_file.read(Path(path)), where=str(path))

    @classmethod
    @checks_arguments
    def from_bytes(cls, content: bytes, *, where: str = "the prefix") -> Prefix:
        """`load` from memory; `where` names the source in errors."""
        tensors, header = prefix_file.decode(content, where=where)
        described = header.description
        if header.has_empty_layers:
            raise UnsupportedGeometry(
                f"{where} counts layers without keys and values ({described['geometry']}); this release "
                "reads geometry that counts only those with some. Update Foreword, or export the prefix "
                "without them"
            )
        with prefix_file.naming(where):
            newer = {} if described["version"] == 1 else described  # version 1 ignored what it did not know
            prefix = cls(
                tensors=tensors,
                base=_made(BaseIdentity, "base", described["base"]),
                template=Template.from_json(described["template"]),
                origin=_made(Origin, "origin", described["origin"]),
                created=described["created"],
                licence=described["licence"],
                labels=described["labels"],
                positions=described["positions"],
                template_digest=newer.get("template_digest"),
                template_rendering=newer.get("template_rendering"),
                report=newer.get("report", {}),
                recipe=newer.get("recipe", {}),
                extra=header.extra,
            )
        # Where sizes differ by layer, `decode` has compared them: a list may say what one number would.
        if not header.differs_by_layer and described["geometry"] != prefix.geometry.to_json():
            raise GeometryMismatch(
                f"{where}: the header declares {str(described['geometry'])[:500]} but the tensors are "
                f"{prefix.geometry}; the file was altered, fetch it again"
            )
        object.__setattr__(prefix, "_file", header)
        return prefix

    def _encode(self) -> bytes:
        if self._file is not None:
            return prefix_file.join(self._file, self.tensors)
        return prefix_file.encode(self.tensors, self._description())

    def _description(self) -> dict[str, Any]:
        optional = {name: getattr(self, name) for name in prefix_file.OPTIONAL}
        ignorable = sorted([*self.extra, *(["template_rendering"] if self.template_rendering else [])])
        origin = dataclasses.asdict(self.origin)
        if self.origin.dev_loss is not None and not math.isfinite(self.origin.dev_loss):
            origin["dev_loss"] = None  # JSON has no such number
        return {
            **self.extra,
            **({"optional": ignorable} if ignorable else {}),
            "base": dataclasses.asdict(self.base),
            "geometry": self.geometry.to_json(),
            "positions": self.positions,
            "template": self.template.to_json(),
            "origin": origin,
            "created": self.created,
            "licence": self.licence,
            "labels": dict(self.labels),
            **{name: value for name, value in optional.items() if value},
        }

    # -- parts ---------------------------------------------------------------------------------

    def slice(self, start: int, stop: int | None = None) -> Prefix:
        """The virtual tokens `start` to `stop`, as a prefix of its own.

        Keys keep the values they have: under a rotary embedding the kept tokens then stand at
        another distance from the text than they were trained for, so measure before relying on it.

        Raises:
            UsageError: nothing would be left.
        """
        kept = {name: tensor[..., start:stop, :] for name, tensor in self.tensors.items()}
        if any(tensor.shape[-2] == 0 for tensor in kept.values()):
            raise UsageError(f"slice({start}, {stop}) of a prefix of length {self.length} keeps nothing")
        return self._derived(kept)

    @staticmethod
    def join(prefixes: Sequence[Prefix]) -> Prefix:
        """The virtual tokens of several prefixes of one base, one after the other.

        Keys stay as they are, which is right for the parts of one prefix; `base.joining.join_prefixes` moves
        those of prefixes that were each trained at positions from 0. The template is the first one's.

        Raises:
            UsageError: no prefix given, or a prefix and an infix.
            GeometryMismatch, WrongBaseModel: they do not belong to one base.
        """
        if not prefixes:
            raise UsageError("join needs at least one prefix")
        first = prefixes[0]
        for other in prefixes[1:]:
            if other.geometry != first.geometry:
                raise GeometryMismatch(f"can't join {other.geometry} to {first.geometry}: other geometry")
            if other.base.fingerprint != first.base.fingerprint:
                raise WrongBaseModel(
                    f"can't join a prefix of {other.base.name} ({other.base.fingerprint}) to one of "
                    f"{first.base.name} ({first.base.fingerprint}): the base models differ"
                )
            if other.template.placement != first.template.placement:
                raise UsageError("can't join a prefix and an infix: different text sees them")
            if other.positions != first.positions:
                raise UsageError(
                    f"can't join prefixes of other positions: {first.positions} and {other.positions}"
                )
        joined = {name: torch.cat([p.tensors[name] for p in prefixes], dim=-2) for name in first.tensors}
        return first._derived(joined)

    def to(self, dtype: torch.dtype) -> Prefix:
        """The same prefix with its numbers in another floating-point type."""
        return self._derived({name: tensor.to(dtype) for name, tensor in self.tensors.items()})

    def relabel(self, *, licence: str | None = None, labels: Mapping[str, str] | None = None) -> Prefix:
        """The same keys and values with another licence or other labels."""
        return dataclasses.replace(
            self,
            licence=self.licence if licence is None else licence,
            labels=self.labels if labels is None else labels,
        )

    def _derived(self, tensors: Mapping[str, torch.Tensor]) -> Prefix:
        # What was measured, and what this release can't read, is about other keys and values.
        origin = dataclasses.replace(self.origin, dev_loss=None)
        return dataclasses.replace(self, tensors=tensors, origin=origin, created=_now(), report={}, extra={})

    # -- against a base model ------------------------------------------------------------------

    def check_fits(
        self,
        identity: BaseIdentity,
        geometry: Geometry,
        equivalent: Collection[str] = (),
        dtype: torch.dtype | None = None,
    ) -> None:
        """Refuse a base model that this prefix was not made for.

        Args:
            equivalent: fingerprints of other bases whose prefixes run on this one, as somebody has declared;
                see `BaseModel.equivalent`.
            dtype: what the base computes in, where that is known.

        Raises:
            GeometryMismatch: other layers, heads or head sizes, or a stream the base does not have.
            WrongBaseModel: same sizes but other weights.
            NonFinitePrefix: see `check_dtype`.
        """
        for stream, found in self.geometry.streams.items():
            expected = geometry.streams.get(stream)
            if found != expected:
                advice = f"use the base it was trained for: {self.base.shown_name}"
                if self.base.fingerprint is not None and self.base.fingerprint == identity.fingerprint:
                    advice = (
                        "it is the base it was trained for, by a release that gave every layer a prefix "
                        "of its own, those that share keys and values too. Train it again"
                    )
                raise GeometryMismatch(
                    f"the prefix has {stream} keys and values for {found}, but {identity.shown_name} has "
                    f"{expected or f'no {stream} stream'}; {advice}"
                )
        mine, theirs = self.base.fingerprint, identity.fingerprint
        if mine is not None and theirs is not None and mine != theirs and mine not in equivalent:
            raise WrongBaseModel(
                f"the prefix was trained for {self.base.shown_name} with weights {mine[:12]}, but the loaded "
                f"base {identity.shown_name} has weights {theirs[:12]}",
                advice="load the base it was trained for, or train a prefix for this one. A quantised copy "
                "of the base can be declared equivalent: PrefixStore.declare_equivalent",
                remedy="other weights",
            )
        if dtype is not None:
            self.check_dtype(dtype)

    def check_dtype(self, dtype: torch.dtype) -> None:
        """Refuse a type of too small a range for the keys and values, such as float16 for what float32 holds.

        Raises:
            NonFinitePrefix: a number that would be infinite in it.
        """
        if not self._largest.to(dtype).isfinite():
            named, most = str(dtype).removeprefix("torch."), torch.finfo(dtype).max
            raise NonFinitePrefix(
                f"the prefix has numbers up to {float(self._largest):.3g}, which are infinite in {named} "
                f"(up to {most:.3g}), the data type of the base model",
                advice="load the base in float32 or bfloat16, or train with a lower learning rate",
                remedy="too large for the type",
            )

    @functools.cached_property
    def _largest(self) -> torch.Tensor:
        """Of all keys and values, without the sign."""
        ends = [end for tensor in self.tensors.values() for end in torch.aminmax(tensor)]
        return torch.stack(ends).abs().max()


def _made(kind: type[Made], what: str, described: Mapping[str, Any]) -> Made:
    """A dataclass from an object of the file's description. Raises UsageError: a field too many, or none."""
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    needed = [each.name for each in fields if each.default is dataclasses.MISSING]
    prefix_file.check_names(what, described, [each.name for each in fields], needed)
    return kind(**described)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
