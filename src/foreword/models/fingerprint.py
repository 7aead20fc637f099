"""Fingerprint: the identity of a base model's weights.

SHA-256 over the sorted (name, dtype, shape, SHA-256 of the bytes) of every tensor: any changed
weight changes it, another distribution over files does not. Of a folder those files count that transformers
loads, and no second copy of the weights beside them (`weight_files`). The safetensors header is read here
(eight bytes of length, little endian, then JSON), so no torch is needed; what was computed is
remembered in the cache folder for as long as the files stay the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foreword.errors import CannotRead, CannotWrite
from foreword.files import write_text
from foreword.models.cache_dir import cache_folder

if TYPE_CHECKING:
    import torch

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
"""What transformers loads of a folder: the file, else the shards that the index names."""
SHORT_LENGTH = 12
CHUNK_BYTES = 1 << 20
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself
THREADS = 2

# torch's names for what safetensors writes; the list of the safetensors library.
DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "complex64": "C64",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}

Entry = tuple[str, str, tuple[int, ...], str]


@dataclass(frozen=True)
class _Span:
    """Where the bytes of one tensor are."""

    file: Path
    begin: int
    end: int
    name: str
    dtype: str
    shape: tuple[int, ...]


def weight_files(folder: Path) -> list[Path]:
    """The files of weights that transformers loads of `folder`, by name; others are second copies.

    Raises:
        CannotRead: as `weight_names`, or one of them is missing.
    """
    folder = Path(folder)
    names = weight_names(folder, {path.name for path in folder.glob("*") if path.is_file()})
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CannotRead(
            f"{folder} lacks {', '.join(missing[:3])} of its {len(names)} files of weights; fetch it again"
        )
    return [folder / name for name in names]


def weight_names(folder: Path, there: Collection[str]) -> list[str]:
    """Which files of `folder` are the weights, sorted; only config.json and the index have to lie there.

    In the order of transformers' `from_pretrained(use_safetensors=True)`: what `transformers_weights` of
    config.json names, `model.safetensors`, the shards of `model.safetensors.index.json`. So
    `consolidated.safetensors`, `model.fp16.safetensors` or shards beside a whole file are second copies.

    Args:
        there: names of the files that the folder, or its repository, has.

    Raises:
        CannotRead: none of these is there, or an index that is none.
    """
    named = _named_by_config(folder / "config.json")
    first = next((name for name in (named, WEIGHTS, INDEX) if name in there), None)
    if first is None:
        others = ", ".join(sorted(name for name in there if name.endswith(".safetensors"))[:3])
        raise CannotRead(
            f"{folder} has no {WEIGHTS} and no {INDEX}, so there are no weights that transformers would load"
            + (f"; it has {others}. Save it with transformers' save_pretrained" if others else "")
        )
    return shards_of(folder / first) if first.endswith(".json") else [first]


def _named_by_config(config: Path) -> str | None:
    try:
        named = json.loads(config.read_text(encoding="utf-8")).get("transformers_weights")
    except (OSError, ValueError, AttributeError, RecursionError):  # said when it is loaded
        return None
    return named if isinstance(named, str) else None


def shards_of(index: Path) -> list[str]:
    """The files of its folder that an index of shards names, sorted. Raises CannotRead: it is none."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if not names or not all(Path(name).name == name for name in names):
            raise ValueError("expected names of files in its own folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CannotRead(f"{index} is no index of weights ({error}); fetch it again") from error
    return names


def fingerprint(folder: Path) -> str:
    """Fingerprint of the weights that transformers loads of `folder`, 64 hexadecimal characters.

    Raises:
        CannotRead: no such weights in the folder, or a file that is cut off or no safetensors.
    """
    folder = Path(folder).resolve()
    return _of_files(folder, [path.name for path in weight_files(folder)])


def former_fingerprint(folder: Path) -> str | None:
    """What earlier releases took for `fingerprint` of a folder with a second copy of its weights.

    They read every *.safetensors of it. A prefix that was trained then names this value; None where the two
    are the same, or where the folder no longer has what they read.
    """
    folder = Path(folder).resolve()
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if names == [path.name for path in weight_files(folder)]:
        return None
    try:
        return _of_files(folder, names)
    except CannotRead:  # of the second copy, which nothing else reads
        return None


def _of_files(folder: Path, names: list[str]) -> str:
    before = _signature(folder, names)
    if remembered := _recall(folder, before):
        return remembered
    spans = [span for name in names for span in _spans(folder / name)]
    with ThreadPoolExecutor(THREADS) as threads:  # hashing gives up Python's lock
        digests = list(threads.map(_digest_of_span, spans))
    value = _combine(
        (span.name, span.dtype, span.shape, digest) for span, digest in zip(spans, digests, strict=True)
    )
    if _signature(folder, names) == before:  # otherwise the digest is of files that are no longer there
        _remember(folder, before, value)
    return value


def fingerprint_of_tensors(named: Iterable[tuple[str, torch.Tensor]]) -> str:
    """The value that `fingerprint` gives for a folder with exactly these tensors.

    Give every tensor once: files hold one copy of tied weights, under one name.
    """
    return _combine(_entry_of_tensor(name, tensor) for name, tensor in named)


def short(value: str) -> str:
    """The form for people: the first characters."""
    return value[:SHORT_LENGTH]


def _combine(entries: Iterable[Entry]) -> str:
    whole = hashlib.sha256()
    for name, dtype, shape, digest in sorted(entries):
        whole.update(json.dumps([name, dtype, list(shape), digest]).encode() + b"\n")
    return whole.hexdigest()


def _spans(file: Path) -> list[_Span]:
    size = file.stat().st_size
    try:
        with open(file, "rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > min(MAX_HEADER_BYTES, size - 8):
                raise ValueError("its header is longer than the file")
            header: dict[str, Any] = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        start = 8 + length
        spans = []
        for name, entry in header.items():
            begin, end = (start + offset for offset in entry["data_offsets"][:2])
            spans.append(_Span(file, begin, end, name, entry["dtype"], tuple(entry["shape"])))
    except (struct.error, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CannotRead(f"{file} is no safetensors file: {error}") from error
    for span in spans:
        if not start <= span.begin <= span.end <= size:
            raise CannotRead(
                f"{file} is cut off: {span.name} ends at byte {span.end} of {size}; fetch it again"
            )
    return spans


def _digest_of_span(span: _Span) -> str:
    digest = hashlib.sha256()
    with open(span.file, "rb") as opened:
        opened.seek(span.begin)
        left = span.end - span.begin
        while left:
            chunk = opened.read(min(CHUNK_BYTES, left))
            if not chunk:
                raise CannotRead(f"{span.file} became shorter while it was read")
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()


def _entry_of_tensor(name: str, tensor: torch.Tensor) -> Entry:
    import torch

    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise CannotRead(f"tensors of type {dtype} have no place in a safetensors file")
    # As bytes first: numpy has no bfloat16. A scalar has no last dimension to reinterpret.
    plain = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
    return name, DTYPES[dtype], tuple(tensor.shape), hashlib.sha256(plain.numpy().data).hexdigest()


def _signature(folder: Path, names: list[str]) -> list[list[Any]]:
    """Name, size, time and inode of each weight file: changes when one is written or replaced."""
    signature = []
    for name in names:
        status = (folder / name).stat()  # of the content: hub snapshots are links
        signature.append([name, status.st_size, status.st_mtime_ns, status.st_ino])
    return signature


def _memory(folder: Path, signature: list[list[Any]]) -> Path:
    """By folder and files, since a folder with a second copy of its weights has two values."""
    names = "\n".join([str(folder), *(name for name, *_ in signature)])
    key = hashlib.sha256(names.encode()).hexdigest()
    return cache_folder() / "fingerprints" / f"{key[:32]}.json"


def _recall(folder: Path, signature: list[list[Any]]) -> str | None:
    try:
        kept = json.loads(_memory(folder, signature).read_text(encoding="utf-8"))
        if kept["folder"] != str(folder) or kept["files"] != signature:
            return None
        value = kept["fingerprint"]
        return value if len(bytes.fromhex(value)) == hashlib.sha256().digest_size else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(folder: Path, signature: list[list[Any]], value: str) -> None:
    memory = _memory(folder, signature)
    kept = {"folder": str(folder), "files": signature, "fingerprint": value}
    with contextlib.suppress(OSError, CannotWrite):  # without a cache it is computed each time
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_text(memory, json.dumps(kept) + "\n", overwrite=True)
