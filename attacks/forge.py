"""Not an attack: what the scripts of this folder forge files with, and the reader that they are shown to."""

from __future__ import annotations

import json
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from foreword import Prefix
from foreword.errors import BadPrefix
from foreword.prefix import BaseIdentity


def good_file() -> bytes:
    """A prefix file that is as it should be."""
    tensors = {f"decoder.{part}": torch.ones(2, 1, 3, 4) for part in ("key", "value")}
    return Prefix(tensors, BaseIdentity("a-model"), created="2026-01-01T00:00:00+00:00").to_bytes()


def parts(content: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Header, description and tensors' bytes of a file."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["foreword"]), content[8 + length :]


def assemble(header: dict[str, Any] | str, description: dict[str, Any] | str | None, data: bytes) -> bytes:
    """A file of these parts; texts are taken as they are."""
    if isinstance(header, dict):
        if description is not None:
            text = description if isinstance(description, str) else json.dumps(description)
            header = {**header, "__metadata__": {"foreword": text}}
        header = json.dumps(header)
    content = header.encode()
    return struct.pack("<Q", len(content)) + content + data


def described(**changes: Any) -> bytes:
    """The good file with other fields in its description."""
    header, description, data = parts(good_file())
    return assemble(header, {**description, **changes}, data)


def listed(**changes: dict[str, Any]) -> bytes:
    """The good file with another list of tensors: `decoder_key={...}` changes parts of that entry."""
    header, description, data = parts(good_file())
    for name, change in changes.items():
        header.setdefault(name.replace("_", "."), {}).update(change)
    return assemble(header, description, data)


def show(content: bytes) -> None:
    """Print what the reader says; end with status 1 if it takes the file or fails without a name."""
    show_used(content, lambda prefix: None)


def show_used(content: bytes, use: Callable[[Prefix], object]) -> None:
    """As `show`, of a file that is read before it is refused: by what uses the prefix."""
    begin = time.perf_counter()
    try:
        prefix = Prefix.from_bytes(content, where="the file")
        use(prefix)
    except BadPrefix as error:
        print(f"{type(error).__name__}: {error}"[:300])
        milliseconds = 1000 * (time.perf_counter() - begin)
        print(f"refused after {milliseconds:.0f} ms; the file has {len(content):,} bytes")
        return
    print(f"TAKEN: {prefix}")
    sys.exit(1)
