"""What is imported: folders of PEFT and adapters, checkpoints of the original code, exports of a store."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import random
import shutil
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from foreword import BaseModel, PrefixStore
from foreword.errors import ForewordWarning
from foreword.interop import export_peft, import_adapters, import_peft, import_prefix_tuning
from foreword.serving.api.schemas import seconds_of
from foreword.store.names import parse
from fuzz import prefix_files
from fuzz.harness import Target
from fuzz.mutations import changed, damaged, dumps
from support.gateways import tiny_chat_base
from support.stand_ins import random_prefix

IMPORTERS = {"peft": import_peft, "adapters": import_adapters, "original": import_prefix_tuning}
LENGTH = 4


@functools.cache
def _base() -> BaseModel:
    return tiny_chat_base()


@functools.cache
def corpus() -> dict[str, dict[str, bytes]]:
    """A good folder for each importer."""
    folder = Path(tempfile.mkdtemp(prefix="foreword-fuzz-"))
    export_peft(random_prefix(_base(), LENGTH), folder / "peft", _base())
    (sizes,) = _base().geometry.streams.values()
    width = sum(heads * (key + value) for heads, key, value in sizes.by_layer)
    config = {
        "config": {
            "architecture": "prefix_tuning",
            "prefix_length": LENGTH,
            "non_linearity": "tanh",
            "flat": True,
        },
        "model_type": "llama",
        "model_name": "tiny-llama",
        "version": "1.2",
    }
    flat = {"prefix_tunings.a.self_prefix.control_trans": torch.ones(LENGTH * width)}
    network = {
        "wte.weight": torch.ones(LENGTH, 8),
        "control_trans.0.weight": torch.ones(8, 8),
        "control_trans.0.bias": torch.ones(8),
        "control_trans.2.weight": torch.ones(width, 8),
        "control_trans.2.bias": torch.ones(width),
    }
    pickled = io.BytesIO()
    torch.save(network, pickled)
    found = {
        "peft": {
            file.name: file.read_bytes() for file in (folder / "peft").iterdir() if file.suffix != ".md"
        },
        "adapters": {
            "adapter_config.json": json.dumps(config).encode(),
            "adapter.safetensors": safetensors.torch.save(flat),
        },
        "original": {"model.safetensors": safetensors.torch.save(network)},
        "pickled": {"pytorch_model.bin": pickled.getvalue()},
    }
    shutil.rmtree(folder)
    return found


def make(rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        content = _archive(rng)
        return b"{}\n" + (damaged(content, rng) if rng.random() < 0.3 else content)
    kind = rng.choice(sorted(corpus()))
    made = dict(corpus()[kind])
    name = rng.choice(sorted(made))
    if name.endswith(".json") and rng.random() < 0.9:
        made[name] = dumps(changed(json.loads(made[name]), rng, rng.choice((1, 1, 2))), rng).encode(
            "utf-8", "surrogatepass"
        )
    elif name.endswith(".safetensors") and rng.random() < 0.7:
        made[name] = _other_tensors(made[name], rng)
    else:
        made[name] = damaged(made[name], rng)
    if rng.random() < 0.03:
        del made[name]
    encoded = {name: base64.b85encode(content).decode() for name, content in made.items()}
    return json.dumps({"kind": "original" if kind == "pickled" else kind, "files": encoded}).encode() + b"\n"


def _other_tensors(content: bytes, rng: random.Random) -> bytes:
    tensors = safetensors.torch.load(content)
    name = rng.choice(sorted(tensors))
    kind, tensor = rng.random(), tensors[name]
    if kind < 0.3:
        tensors[name] = tensor.to(
            rng.choice((torch.float8_e4m3fn, torch.int32, torch.bool, torch.float64, torch.complex64))
        )
    elif kind < 0.5:
        tensors[name] = (
            tensor.flatten() if rng.random() < 0.3 else tensor[:0] if rng.random() < 0.5 else tensor.sum()
        )
    elif kind < 0.7:
        tensors[name] = tensor.float() * rng.choice((float("nan"), float("inf"), 1e38, 0.0))
    elif kind < 0.85:
        tensors[name + rng.choice((".x", "2", ""))] = tensors.pop(name)
    else:
        tensors[
            rng.choice(("x", "wte.weight", "control_trans", "prompt_embeddings", "prefix_tunings.a.b.c"))
        ] = tensor
    return bytes(safetensors.torch.save({name: t.contiguous().clone() for name, t in tensors.items()}))


def _archive(rng: random.Random) -> bytes:
    """An export of a store; what it says of itself, and the file in it, changed."""
    blob = prefix_files.make(rng) if rng.random() < 0.3 else _good_blob()
    digest = hashlib.sha256(blob).hexdigest()
    manifest: Any = {
        "foreword-export": 1,
        "owner": "alice",
        "versions": [
            {"name": "one", "number": 1, "created": "2026-11-30T10:00:00.000000+00:00", "digest": digest}
        ],
        "labels": [{"name": "one", "label": "production", "number": 1}],
    }
    if rng.random() < 0.8:
        manifest = changed(manifest, rng, rng.choice((1, 1, 2)))
    made = io.BytesIO()
    compression = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    members = {
        "manifest.json": dumps(manifest, rng).encode("utf-8", "surrogatepass"),
        f"blobs/{digest}.prefix": blob,
    }
    with zipfile.ZipFile(made, "w", compression) as archive:
        for name, content in members.items():
            # With a date of its own: `writestr` of a name takes the clock's, and a seed must give the same bytes.
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return made.getvalue()


@functools.cache
def _good_blob() -> bytes:
    return random_prefix(_base(), 1).to_bytes()


@functools.cache
def _store() -> PrefixStore:
    return PrefixStore(Path(tempfile.mkdtemp(prefix="foreword-fuzz-")) / "store")


def run(content: bytes) -> str:
    first, _, rest = content.partition(b"\n")
    given = json.loads(first)
    folder = Path(tempfile.mkdtemp(prefix="foreword-fuzz-"))
    try:
        if not given:
            return _import_archive(folder / "export.zip", rest)
        for name, encoded in given["files"].items():
            (folder / name).write_bytes(base64.b85decode(encoded))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ForewordWarning)
            IMPORTERS[given["kind"]](folder, _base()).to_bytes()
        return f"taken ({given['kind']})"
    finally:
        shutil.rmtree(folder)


def _import_archive(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    store = _store()
    imported = store.import_owner(path)
    try:
        for version in store.each(
            owner=imported.owner
        ):  # what is listed can be shown, and counted in seconds
            assert seconds_of(version.created) is not None
            store.describe(version.reference)
            json.dumps(version.to_json())
            parse(version.reference)
    finally:
        store.forget(imported.owner)
    return "taken (export)"


TARGET = Target("foreign-files", make, run, share=0.01)
