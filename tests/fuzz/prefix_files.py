"""Prefix files: the header's JSON, the list of tensors, data types, lengths, the numbers, and any bytes.

What is taken has to be written again byte for byte, to be kept by a store, and to run on the served base or to be
refused for it by name.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
import struct
import warnings
from typing import Any

import torch

from foreword import Prefix
from foreword.errors import TemplateChanged
from foreword.prefix import BaseIdentity
from foreword.serving.served_model import ServedModel, served_of
from foreword.store.record import columns_of
from fuzz.harness import Target
from fuzz.mutations import changed, damaged, dumps
from support.gateways import tiny_chat_base
from support.stand_ins import random_prefix

Parts = tuple[dict[str, Any], dict[str, Any], bytes]
"""Header without metadata, description, the tensors' bytes."""

DTYPES = (
    *("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "I32", "U8"),
    "BOOL",
    "C64",
)
NUMBERS = ("<f", (float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 1e-45, 0.0))


@functools.cache
def served() -> ServedModel:
    return served_of(tiny_chat_base())


@functools.cache
def corpus() -> tuple[Parts, ...]:
    """Good files of every kind that the format has."""
    base = tiny_chat_base()
    plain = random_prefix(base, 4)
    full = random_prefix(
        base,
        3,
        labels={"note": "größer", "b": "2"},
        licence="MIT",
        template_digest="ab" * 32,
        template_rendering="<user>What is",
        report={"harm": 0.1, "dev_loss": 2},
        recipe={"steps": [1, {"a": None}]},
        extra={"later": [1]},
        template=served().chat_template,
    )
    both = {
        f"{s}.{part}": torch.ones(2, 1, 2, 4)
        for s in ("decoder", "encoder", "cross")
        for part in ("key", "value")
    }
    layers = {f"decoder.{part}.{n}": torch.ones(n + 1, 2, 4) for n in range(2) for part in ("key", "value")}
    files = [
        plain,
        full,
        random_prefix(base, 1),
        *(plain.to(t) for t in (torch.float64, torch.bfloat16, torch.float16)),
    ]
    files += [Prefix(tensors, BaseIdentity("other")) for tensors in (both, layers)]
    found = [_parts(prefix.to_bytes()) for prefix in files]
    header, description, data = found[0]
    return (*found, (header, {**description, "version": 1}, data))


def _parts(content: bytes) -> Parts:
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    return header, json.loads(header.pop("__metadata__")["foreword"]), content[8 + length :]


def make(rng: random.Random) -> bytes:
    """A good file with something wrong; now and then one with nothing wrong, or mere bytes."""
    header, description, data = rng.choice(corpus())
    kind = rng.random()
    if kind < 0.02:
        return rng.randbytes(rng.choice((0, 7, 8, 9, 64, 1000)))
    if kind < 0.55:
        description = changed(description, rng, rng.choice((1, 1, 1, 2, 3)))
    elif kind < 0.70:
        header = changed(header, rng, rng.choice((1, 1, 2)))
    elif kind < 0.78:
        header, description, data = _other_types(header, description, data, rng)
    elif kind < 0.86:
        data = _other_numbers(data, rng)
    whole: Any = header
    if isinstance(header, dict):
        whole = {**header, "__metadata__": {"foreword": dumps(description, rng), **_beside(rng)}}
    text = dumps(whole, rng).encode("utf-8", "surrogatepass")
    content = struct.pack("<Q", _length(len(text), rng)) + text + data
    return damaged(content, rng) if 0.86 <= kind < 0.97 else content


def _beside(rng: random.Random) -> dict[str, Any]:
    return {"format": rng.choice(("pt", 5, None, {"a": []}))} if rng.random() < 0.03 else {}


def _length(true: int, rng: random.Random) -> int:
    if rng.random() < 0.97:
        return true
    return rng.choice((0, 1, true - 1, true + 1, 1 << 20, 1 << 31, (1 << 63) - 8, (1 << 64) - 1))


def _other_types(header: Any, description: Any, data: bytes, rng: random.Random) -> Parts:
    """One type for every tensor, or for one; with as many bytes as it takes, or as before."""
    names = list(header)
    chosen = names if rng.random() < 0.6 else [rng.choice(names)]
    dtype = rng.choice(DTYPES)
    width = {"F64": 8, "C64": 8, "F16": 2, "BF16": 2, "F32": 4, "I32": 4}.get(dtype, 1)
    made = {name: {**one, "dtype": dtype} if name in chosen else dict(one) for name, one in header.items()}
    if rng.random() < 0.7:
        place = 0
        for one in sorted(made.values(), key=lambda entry: entry["data_offsets"]):
            size = width
            for edge in one["shape"]:
                size *= edge
            one["data_offsets"] = [place, place + size]
            place += size
        data = (data * 8)[:place]
    said = {
        "F64": "float64",
        "F32": "float32",
        "F16": "float16",
        "BF16": "bfloat16",
        "F8_E4M3": "float8_e4m3fn",
    }
    if rng.random() < 0.8:
        description = {**description, "dtype": said.get(dtype, dtype.lower())}
    if rng.random() < 0.3:
        description = {**description, "version": 1}
    return made, description, data


def _other_numbers(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.2:
        return (
            data[: rng.randrange(len(data))]
            if rng.random() < 0.5
            else data + b"\0" * rng.choice((1, 4, 4096))
        )
    place = rng.randrange(0, max(1, len(data) - 4), 4)
    form, numbers = NUMBERS
    return data[:place] + struct.pack(form, rng.choice(numbers)) + data[place + 4 :]


def run(content: bytes) -> str:
    prefix = Prefix.from_bytes(content, where="the file")
    assert prefix.to_bytes() == content
    assert prefix.digest == hashlib.sha256(content).hexdigest()
    repr(prefix)
    json.dumps(columns_of(prefix)).encode()  # raises what the store raises
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TemplateChanged)
        served().check_runs(prefix)
        served().ends_of(prefix)
        prefix.template.source_ids(served().tokenizer, "hello")
    return "taken"


TARGET = Target("prefix-files", make, run, share=0.6)
