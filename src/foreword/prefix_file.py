"""The prefix file: one safetensors file whose header carries Foreword's description as JSON.

This file knows bytes, tensors and JSON, not what they mean; `prefix.py` gives them meaning.
"""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from foreword import files
from foreword.errors import (
    BadPrefix,
    CannotRead,
    ForewordError,
    NotAPrefixFile,
    TruncatedPrefix,
    UnsupportedVersion,
)

FORMAT_VERSION = 1
HEADER_KEY = "foreword"
POSITIONS = ("text-after-prefix", "text-after-prefix-within-window")
"""Rules of positions that this release reads; see `Prefix.positions`."""
_FIELDS = ("base", "geometry", "template", "origin", "created", "licence", "labels")


def encode(tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> bytes:
    """File content for `tensors` and `header`; the same input gives the same bytes."""
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    described = {"version": FORMAT_VERSION, "dtype": dtype, **header}
    text = json.dumps(described, sort_keys=True, ensure_ascii=False)
    return bytes(safetensors.torch.save(dict(tensors), metadata={HEADER_KEY: text}))


def decode(content: bytes, *, where: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and header of a file's content.

    Raises:
        NotAPrefixFile: not safetensors, or without Foreword's header.
        TruncatedPrefix: the tensors end before the header says.
        UnsupportedVersion: a version or position rule this release does not read.
    """
    header = _read_header(content, where)
    if header.get("version") != FORMAT_VERSION:
        raise UnsupportedVersion(
            f"{where} has format version {header.get('version')!r}; this release reads {FORMAT_VERSION}. "
            "Update Foreword, or export the prefix again with this release"
        )
    if header.get("positions") not in POSITIONS:
        raise UnsupportedVersion(
            f"{where} counts positions by {header.get('positions')!r}; this release reads "
            f"{' and '.join(POSITIONS)}. Update Foreword"
        )
    if missing := [name for name in _FIELDS if name not in header]:
        raise NotAPrefixFile(f"{where}: the header lacks {', '.join(missing)}; fetch the file again")
    try:
        tensors = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise NotAPrefixFile(f"{where} is damaged: {error}; fetch it again") from error
    return tensors, header


def write(path: Path, content: bytes, *, overwrite: bool) -> None:
    """Write a prefix file whole or not at all; see `files.writing` for the errors."""
    files.write_bytes(path, content, overwrite=overwrite)


def read(path: Path) -> bytes:
    """The bytes of a prefix file.

    Raises:
        CannotRead: absent, a folder, or no right.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise CannotRead(f"{path} could not be read: {error.strerror}; expected a prefix file") from error


@contextlib.contextmanager
def naming(where: str) -> Iterator[None]:
    """Put the file's name in front of errors about its content."""
    try:
        yield
    except BadPrefix as error:
        raise type(error)(f"{where}: {error}") from error
    except (TypeError, KeyError, AttributeError, ForewordError) as error:
        raise NotAPrefixFile(f"{where}: the header has an unexpected form ({error})") from error


def _read_header(content: bytes, where: str) -> dict[str, Any]:
    # The layout is safetensors' own: 8 bytes little-endian length, that many bytes of JSON, tensors.
    # Read by hand because the library's message does not tell a cut file from a foreign one.
    expected = f"{where} is not a prefix file: expected safetensors with Foreword's header"
    if len(content) < 8:
        raise NotAPrefixFile(f"{expected}, found {len(content)} bytes")
    (length,) = struct.unpack("<Q", content[:8])
    looks_right = content[8:9] == b"{" and length < 100_000_000
    if looks_right and len(content) < 8 + length:
        raise TruncatedPrefix(
            f"{where} ends after {len(content)} bytes, within its header of {length}; fetch it again"
        )
    try:
        header = json.loads(content[8 : 8 + length]) if looks_right else None
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise NotAPrefixFile(f"{expected}, found other content")
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or HEADER_KEY not in metadata:
        raise NotAPrefixFile(
            f"{expected}; it is a safetensors file without it. A prefix of another library has to be "
            "imported first"
        )
    try:
        ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise NotAPrefixFile(
            f"{where}: the list of tensors is damaged ({error!r}); fetch the file again"
        ) from error
    whole = 8 + length + max(ends, default=0)
    if len(content) < whole:
        raise TruncatedPrefix(f"{where} has {len(content)} bytes of {whole}; fetch it again")
    try:
        described = json.loads(metadata[HEADER_KEY])
    except ValueError as error:
        raise NotAPrefixFile(
            f"{where}: Foreword's header is not JSON ({error}); fetch the file again"
        ) from error
    if not isinstance(described, dict):
        raise NotAPrefixFile(f"{where}: Foreword's header is not an object; fetch the file again")
    return described
