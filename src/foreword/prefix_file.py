"""The prefix file: one safetensors file whose header carries Foreword's description as JSON.

docs/format.md is the specification. This file knows bytes, tensors, JSON and the format's limits, not what a
prefix is for; `prefix.py` gives them meaning. It holds the only reader of the header, which bounds what it
takes before it parses and checks the list of tensors before one of them is read.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import safetensors
import safetensors.torch
import torch

from foreword.errors import (
    BadPrefix,
    CannotRead,
    ForewordError,
    GeometryMismatch,
    NotAPrefixFile,
    TruncatedPrefix,
    UnsupportedVersion,
    UsageError,
)

FORMAT_VERSION = 2
VERSIONS = (1, 2)
HEADER_KEY = "foreword"
POSITIONS = ("text-after-prefix", "text-after-prefix-within-window")
"""Rules of positions that this release reads; see `Prefix.positions`."""

# Limits of version 2, as docs/format.md has them.
MAX_HEADER_BYTES = 64 * 1024
MAX_LABELS = 64
MAX_LABEL_NAME, MAX_LABEL_TEXT, MAX_LICENCE, MAX_RENDERING = 64, 1024, 1024, 2048  # characters
MAX_REPORT_BYTES, MAX_RECIPE_BYTES = 8 * 1024, 16 * 1024  # as JSON
MAX_DEPTH, MAX_LAYERS = 16, 4096
MAX_HEADER_BYTES_OF_VERSION_1 = 1024 * 1024  # version 1 had no limit, so that no writer kept one

_REQUIRED = ("base", "geometry", "template", "origin", "created", "licence", "labels")
OPTIONAL = ("template_digest", "template_rendering", "report", "recipe")
FIELDS = frozenset({"version", "dtype", "positions", "optional", *_REQUIRED, *OPTIONAL})
"""All fields of version 2."""
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_STREAMS = ("decoder", "encoder", "cross")
_SIZES = ("layers", "kv_heads", "key_dim", "value_dim")


@dataclass(frozen=True)
class _Entry:
    """What the list of tensors says of one tensor; `begin` and `end` count from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """A file's header, checked.

    Attributes:
        start: the file's bytes before its tensors, as they stand in it.
        description: Foreword's part of it.
        entries: the tensors in the order of their bytes.
        file_bytes: how long the whole file has to be.
    """

    start: bytes
    description: dict[str, Any]
    entries: tuple[_Entry, ...]
    file_bytes: int

    @property
    def differs_by_layer(self) -> bool:
        """Whether the layers of some stream have different sizes, so that each has tensors of its own."""
        return self.description["version"] > 1 and _differs_by_layer(self.description["geometry"])

    @property
    def has_empty_layers(self) -> bool:
        """Whether some layer has no keys and values, such as one of linear attention."""
        if not self.differs_by_layer:
            return False
        heads = [sizes["kv_heads"] for sizes in self.description["geometry"].values()]
        return any(isinstance(each, list) and 0 in each for each in heads)

    @property
    def extra(self) -> dict[str, Any]:
        """Optional fields that this release does not know."""
        named = self.description.get("optional", []) if self.description["version"] > 1 else []
        return {name: self.description[name] for name in sorted(set(self.description) & set(named) - FIELDS)}


# -- writing -----------------------------------------------------------------------------------


def encode(tensors: Mapping[str, torch.Tensor], description: Mapping[str, Any]) -> bytes:
    """File content of the newest version; the same input gives the same bytes."""
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    described = {"version": FORMAT_VERSION, "dtype": dtype, **description}
    text = json.dumps(described, sort_keys=True, ensure_ascii=False)
    return bytes(safetensors.torch.save(dict(tensors), metadata={HEADER_KEY: text}))


def join(header: Header, tensors: Mapping[str, torch.Tensor]) -> bytes:
    """The file that `header` was read from, byte for byte, from its tensors."""
    parts = [header.start]
    for entry in header.entries:
        # A file of its own for each: the library knows the format's byte order.
        single = bytes(safetensors.torch.save({entry.name: tensors[entry.name]}))
        parts.append(single[8 + _length(single) :])
    return b"".join(parts)


def check_writable(content: bytes) -> None:
    """Refuse a header above the limit of the format.

    Raises:
        UsageError: says how much there is and what to shorten.
    """
    if (length := _length(content)) > MAX_HEADER_BYTES:
        raise UsageError(
            f"the header of the prefix file would have {length:,} bytes; expected {MAX_HEADER_BYTES:,} at "
            "most. Shorten labels, licence, report, recipe or the template's texts"
        )


def check_description(description: Mapping[str, Any]) -> None:
    """Hold the fields of bounded size, those that are there, against version 2's limits.

    Raises:
        UsageError: names the field, what was found and what was expected.
    """
    _check_json("the header", description)
    labels = description.get("labels")
    if isinstance(labels, Mapping):
        if len(labels) > MAX_LABELS:
            raise UsageError(f"there are {len(labels)} labels; expected {MAX_LABELS} at most")
        for name, text in labels.items():
            _check_length("the name of a label", name, MAX_LABEL_NAME)
            _check_length(f"label {name!r}", text, MAX_LABEL_TEXT)
    _check_length("licence", description.get("licence"), MAX_LICENCE)
    for name, limit in (("report", MAX_REPORT_BYTES), ("recipe", MAX_RECIPE_BYTES)):
        if name in description:
            check_open_mapping(name, description[name])
            size = len(json.dumps(description[name], ensure_ascii=False).encode())
            if size > limit:
                raise UsageError(f"{name} has {size:,} bytes as JSON; expected {limit:,} at most")
    rendering = description.get("template_rendering")
    if not isinstance(rendering, str | None):
        raise UsageError(f"template_rendering is {rendering!r}; expected text")
    _check_length("template_rendering", rendering, MAX_RENDERING)
    digest = description.get("template_digest")
    if digest is not None and not (
        isinstance(digest, str) and len(digest) == 64 and set(digest) <= set("0123456789abcdef")
    ):
        raise UsageError(f"template_digest is {digest!r}; expected 64 hexadecimal digits in lower case")


def check_open_mapping(name: str, value: Any) -> None:
    """Refuse what is no JSON object, or what not every reader of JSON would take.

    Raises:
        UsageError: NaN or infinity, half of a surrogate pair, nesting without end, a type JSON has not.
    """
    if not isinstance(value, Mapping):
        raise UsageError(f"{name} is {value!r}; expected a mapping")
    _check_json(name, value)


def _check_json(name: str, value: Any, depth: int = 0, *, finite: bool = True) -> None:
    if depth > MAX_DEPTH:
        raise UsageError(f"{name} is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"{name} holds half of a surrogate pair; expected whole characters") from error
    elif isinstance(value, Mapping):
        for key, one in value.items():
            if not isinstance(key, str):
                raise UsageError(f"{name} has the key {key!r}; expected text")
            _check_json(name, key, depth + 1)
            _check_json(name, one, depth + 1, finite=finite)
    elif isinstance(value, (list, tuple)):
        for one in value:
            _check_json(name, one, depth + 1, finite=finite)
    elif isinstance(value, float):
        if finite and not math.isfinite(value):
            raise UsageError(f"{name} holds {value}; expected finite numbers")
    elif value is not None and not isinstance(value, (bool, int)):
        raise UsageError(f"{name} holds a {type(value).__name__}; expected text, numbers, lists and mappings")


def _check_length(name: str, text: Any, limit: int) -> None:
    if isinstance(text, str) and len(text) > limit:
        raise UsageError(f"{name} has {len(text):,} characters; expected {limit:,} at most")


# -- reading -----------------------------------------------------------------------------------


def read(path: Path) -> bytes:
    """The bytes of a prefix file; those after the header only once the header is found good.

    Raises:
        CannotRead: absent, a folder, or no right.
        NotAPrefixFile, TruncatedPrefix, UnsupportedVersion, GeometryMismatch: as `read_header`.
    """
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return file.read()  # a pipe does not say its length; `decode` checks what came
            start = file.read(8)
            if len(start) == 8 and _length(start) <= MAX_HEADER_BYTES_OF_VERSION_1:
                start += file.read(_length(start))
            header = read_header(start, where=str(path), file_bytes=status.st_size)
            return start + file.read(header.file_bytes - len(start))
    except OSError as error:
        raise CannotRead(f"{path} could not be read: {error.strerror}; expected a prefix file") from error


def decode(content: bytes, *, where: str) -> tuple[dict[str, torch.Tensor], Header]:
    """Tensors and header of a file's content; `where` names its source in errors.

    Raises:
        NotAPrefixFile, TruncatedPrefix, UnsupportedVersion, GeometryMismatch: as `read_header`.
    """
    header = read_header(content, where=where)
    try:
        return safetensors.torch.load(content), header
    except (safetensors.SafetensorError, KeyError) as error:
        raise NotAPrefixFile(f"{where} is damaged: {error}; fetch it again") from error


def read_header(content: bytes, *, where: str, file_bytes: int | None = None) -> Header:
    """The header at the start of `content`: bounded before it is parsed, and checked.

    Args:
        content: the file, or as much of it as its header takes.
        file_bytes: how long the file is, where `content` is only its start.

    Raises:
        NotAPrefixFile: not safetensors, without Foreword's description, damaged, or above a limit.
        TruncatedPrefix: the file ends before its tensors do.
        UnsupportedVersion: a version, position rule or field that this release does not read.
        GeometryMismatch: the description and the list of tensors contradict each other.
    """
    size = len(content) if file_bytes is None else file_bytes
    start = _bounded_start(content, where, size)
    parsed = _parse(start[8:], where, "the header")
    metadata = parsed.pop("__metadata__", None)
    if not isinstance(metadata, dict) or HEADER_KEY not in metadata:
        raise NotAPrefixFile(
            f"{_expected(where)}; it is a safetensors file without it. A prefix of another library has to be "
            "imported first"
        )
    entries = _entries(parsed, where)
    whole = len(start) + max((entry.end for entry in entries), default=0)
    if size < whole:
        raise TruncatedPrefix(f"{where} has {size} bytes of {whole}; fetch it again")
    if size > whole:
        raise NotAPrefixFile(f"{where} has {size - whole} bytes behind its tensors; fetch it again")
    description = _parse(metadata[HEADER_KEY], where, "Foreword's header")
    _check_version(description, len(start) - 8, where)
    with naming(where):
        for name in ("base", "geometry", "template", "origin"):
            if not isinstance(description[name], dict):
                raise UsageError(f"{name} is {description[name]!r}; expected an object")
        if description["version"] == 1:
            _check_json("the header", description, finite=False)  # version 1 took NaN for a dev loss
        else:
            _check_version_2(description, entries)
    return Header(start, description, entries, whole)


@contextlib.contextmanager
def naming(where: str) -> Iterator[None]:
    """Put the file's name in front of errors about its content."""
    try:
        yield
    except BadPrefix as error:
        raise type(error)(f"{where}: {error}") from error
    except (TypeError, KeyError, AttributeError, ForewordError) as error:
        raise NotAPrefixFile(f"{where}: the header has an unexpected form ({error})") from error


def check_names(what: str, found: Mapping[str, Any], known: Collection[str], needed: Collection[str]) -> None:
    """Refuse an object of the description with a field too many, or without one that has to be there.

    Raises:
        UsageError: names the fields.
    """
    if unknown := sorted(set(found) - set(known)):
        raise UsageError(f"{what} has unknown fields {unknown}; expected {sorted(known)}")
    if missing := sorted(set(needed) - set(found)):
        raise UsageError(f"{what} lacks {', '.join(missing)}")


def _length(content: bytes) -> int:
    # The layout is safetensors' own: 8 bytes little-endian length, that many bytes of JSON, tensors.
    length: int = struct.unpack("<Q", content[:8])[0]
    return length


def _expected(where: str) -> str:
    return f"{where} is not a prefix file: expected safetensors with Foreword's header"


def _bounded_start(content: bytes, where: str, size: int) -> bytes:
    """Length and JSON of the header. Read by hand: safetensors does not tell a cut file from a foreign one,
    and would parse 100 MB."""
    if size < 8:
        raise NotAPrefixFile(f"{_expected(where)}, found {size} bytes")
    length, limit = _length(content), MAX_HEADER_BYTES_OF_VERSION_1
    if length > limit:
        raise NotAPrefixFile(
            f"{_expected(where)} of {limit:,} bytes at most, found other content (a length of {length:,})"
        )
    if content[8:9] != b"{":
        raise NotAPrefixFile(f"{_expected(where)}, found other content")
    if size < 8 + length:
        raise TruncatedPrefix(
            f"{where} ends after {size} bytes, within its header of {length}; fetch it again"
        )
    return bytes(content[: 8 + length])


def _parse(content: Any, where: str, what: str) -> dict[str, Any]:
    if not isinstance(content, (str, bytes)):
        raise NotAPrefixFile(f"{where}: {what} is no text; fetch the file again")
    try:
        text = content if isinstance(content, str) else content.decode()
        parsed = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise NotAPrefixFile(f"{where}: {what} is not JSON ({error}); fetch the file again") from error
    if not isinstance(parsed, dict):
        raise NotAPrefixFile(f"{where}: {what} is not an object; fetch the file again")
    return parsed


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Of two equal keys one reader takes the first and another the last: none may be taken.
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return made


def _entries(listed: Mapping[str, Any], where: str) -> tuple[_Entry, ...]:
    """The list of tensors, whose bytes have to follow each other without gap or overlap."""

    def damaged(why: str) -> NoReturn:
        raise NotAPrefixFile(f"{where}: the list of tensors is damaged ({why}); fetch the file again")

    entries = []
    for name, one in listed.items():
        if not isinstance(one, dict) or set(one) != {"dtype", "shape", "data_offsets"}:
            damaged(f"{name!r} has not exactly dtype, shape and data_offsets")
        shape, offsets = one["shape"], one["data_offsets"]
        if not isinstance(one["dtype"], str) or not _are_sizes(shape) or not _are_sizes(offsets, 2):
            damaged(f"{name!r} has values of another type")
        entries.append(_Entry(name, one["dtype"], tuple(shape), *offsets))
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    place = 0
    for entry in entries:
        if entry.begin != place or entry.end < entry.begin:
            damaged(
                f"{entry.name!r} has the bytes {entry.begin} to {entry.end}; expected them from {place} on"
            )
        place = entry.end
    return tuple(entries)


def _are_sizes(value: Any, count: int | None = None) -> bool:
    return (
        isinstance(value, list)
        and (count is None or len(value) == count)
        and all(type(one) is int and 0 <= one < 1 << 63 for one in value)
    )


def _check_version(description: Mapping[str, Any], length: int, where: str) -> None:
    version = description.get("version")
    if type(version) is not int or version not in VERSIONS:
        raise UnsupportedVersion(
            f"{where} has format version {version!r}; this release reads {' and '.join(map(str, VERSIONS))}. "
            "Update Foreword, or export the prefix again with this release"
        )
    if description.get("positions") not in POSITIONS:
        raise UnsupportedVersion(
            f"{where} counts positions by {description.get('positions')!r}; this release reads "
            f"{' and '.join(POSITIONS)}. Update Foreword"
        )
    if missing := [name for name in _REQUIRED if name not in description]:
        raise NotAPrefixFile(f"{where}: the header lacks {', '.join(missing)}; fetch the file again")
    if version > 1 and length > MAX_HEADER_BYTES:
        raise NotAPrefixFile(
            f"{where} has a header of {length:,} bytes; expected {MAX_HEADER_BYTES:,} at most in a file of "
            f"version {version}. Whoever made it has to shorten labels, report or recipe"
        )


def _check_version_2(description: Mapping[str, Any], entries: tuple[_Entry, ...]) -> None:
    optional = description.get("optional", [])
    if not isinstance(optional, list) or not all(isinstance(name, str) for name in optional):
        raise UsageError(f"optional is {optional!r}; expected a list of names of fields")
    if unknown := sorted(set(description) - FIELDS - set(optional)):
        raise UnsupportedVersion(
            f"it has fields that this release does not know and must not ignore: {', '.join(unknown)}. "
            "Update Foreword"
        )
    check_description(description)
    for entry in entries:
        if _DTYPES.get(entry.dtype) != description.get("dtype"):
            raise GeometryMismatch(
                f"{entry.name} is {entry.dtype} and the header says {description.get('dtype')!r}; expected "
                f"one of {', '.join(_DTYPES.values())} for all"
            )
    if _differs_by_layer(description["geometry"]):
        _check_layers(description["geometry"], entries)


# -- geometry that differs by layer ------------------------------------------------------------


def _differs_by_layer(geometry: Mapping[str, Any]) -> bool:
    return any(map(_has_lists, geometry.values()))


def _has_lists(sizes: Any) -> bool:
    return isinstance(sizes, dict) and any(isinstance(size, list) for size in sizes.values())


def _check_layers(geometry: Mapping[str, Any], entries: tuple[_Entry, ...]) -> None:
    """Compare declared sizes with the tensors where one stream, or several, has a tensor for each layer."""
    found = {entry.name: entry.shape for entry in entries}
    expected: dict[str, tuple[int, ...]] = {}
    for stream, sizes in geometry.items():
        expected |= dict(_expected_shapes(stream, sizes, found))
    if wrong := sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name)):
        shape, declared = found.get(wrong[0]), expected.get(wrong[0])
        raise GeometryMismatch(
            f"{wrong[0]} has the shape {shape and list(shape)}; the header declares "
            f"{declared and list(declared)}"
        )


def _expected_shapes(
    stream: str, sizes: Any, found: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors that a stream's declared sizes stand for; P is the tensors' own."""
    if stream not in _STREAMS or not isinstance(sizes, dict) or set(sizes) != set(_SIZES):
        raise GeometryMismatch(f"the geometry of {stream!r} is {sizes!r}; expected {', '.join(_SIZES)}")
    layers = sizes["layers"]
    if not _are_sizes([layers]) or not 0 < layers <= MAX_LAYERS:
        raise GeometryMismatch(f"{stream} has {layers!r} layers; expected 1 to {MAX_LAYERS}")
    by_layer = {name: size if isinstance(size, list) else [size] * layers for name, size in sizes.items()}
    if not all(_are_sizes(sizes_L, layers) for sizes_L in by_layer.values()):
        raise GeometryMismatch(f"{stream} has the sizes {sizes!r}; expected numbers, or lists of {layers}")
    lengths = {s[-2] for name, s in found.items() if name.startswith(f"{stream}.") and len(s) > 2}
    if len(lengths) != 1 or 0 in lengths:
        raise GeometryMismatch(f"{stream} has prefixes of the lengths {sorted(lengths)}; expected one, not 0")
    (length,) = lengths
    for part in ("key", "value"):
        if not _has_lists(sizes):
            yield f"{stream}.{part}", (layers, sizes["kv_heads"], length, sizes[f"{part}_dim"])
            continue
        for layer, (heads, dim) in enumerate(zip(by_layer["kv_heads"], by_layer[f"{part}_dim"], strict=True)):
            if heads:  # a layer without heads, such as one of linear attention, has no tensors
                yield f"{stream}.{part}.{layer}", (heads, length, dim)
