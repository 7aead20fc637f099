"""Import of checkpoints of the original code (XiangLi1999/PrefixTuning): GPT-2 and BART.

That code saves the network that makes the prefix, never the prefix: the network runs here, once.
Its GPT-2 takes the result as past keys and values, so text starts at position P as ours does; its
BART leaves positions alone, as ours does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from foreword.base.base_model import BaseModel
from foreword.errors import CannotRead, ForeignFormat
from foreword.interop.conversion import from_flat, run, width
from foreword.interop.foreign_files import find_file, naming, read_tensors
from foreword.prefix import Origin, Prefix, Stream, StreamGeometry

WEIGHTS = ("pytorch_model.bin", "model.safetensors")

_WHAT = "a checkpoint of XiangLi1999/PrefixTuning (a folder with pytorch_model.bin, or that file)"
# What stands behind `wte` and `control_trans` in the names, by stream.
_SUFFIXES: dict[Stream, str] = {"decoder": "", "encoder": "_enc", "cross": "2"}


def import_prefix_tuning(path: str | Path, base: BaseModel) -> Prefix:
    """The prefix that a checkpoint of the original code makes.

    Args:
        path: the folder that it saved, or the file of weights in it.
        base: the GPT-2 or BART it was trained for. The checkpoint does not name it.

    Raises:
        ForeignFormat: other tensors, or a variant whose result is no fixed prefix.
        UnsafePickle: the file holds more than tensors.
        GeometryMismatch: made for a base of other sizes.
        NonFinitePrefix: NaN or infinity in the result.
        CannotRead: no such file.
    """
    path = Path(path)
    if not path.exists():
        raise CannotRead(f"{path} is not there; expected {_WHAT}")
    file = find_file(path, WEIGHTS, what=_WHAT) if path.is_dir() else path
    saved = read_tensors(file)
    with torch.no_grad(), naming(file):
        _check_names(saved)
        tensors: dict[str, torch.Tensor] = {}
        for stream in base.geometry.streams:
            key_LHPD, value_LHPD = _stream(saved, stream, base)
            tensors |= {f"{stream}.key": key_LHPD, f"{stream}.value": value_LHPD}
        prefix = Prefix(
            tensors=tensors,
            base=base.identity,
            template=base.raw_template,
            origin=Origin(parameterization="imported from XiangLi1999/PrefixTuning"),
        )
        prefix.check_dtype(base.dtype)
        return prefix


def _check_names(saved: Mapping[str, torch.Tensor]) -> None:
    if not any(name.startswith("control_trans") for name in saved):
        names = sorted(saved)
        raise ForeignFormat(f"it holds {', '.join(names[:4])}...; expected control_trans: {_WHAT}")
    if "wte2.weight" in saved and not any(name.startswith("control_trans2.") for name in saved):
        raise ForeignFormat(
            "it is an infix, whose keys and values depend on every source; a prefix is the same for all. "
            "Train a prefix instead"
        )


def _stream(
    saved: Mapping[str, torch.Tensor], stream: Stream, base: BaseModel
) -> tuple[torch.Tensor, torch.Tensor]:
    sizes, decoder = base.geometry.streams[stream], base.geometry.streams["decoder"]
    # Every network of the original has as many layers as the decoder; its encoder takes the first ones.
    made = StreamGeometry(decoder.layers, sizes.kv_heads, sizes.key_dim, sizes.value_dim)
    if sizes.layers > made.layers:
        raise ForeignFormat(
            f"{base.name} has {sizes.layers} {stream} layers and {made.layers} in the decoder; the original "
            "makes only as many, and its code stops there"
        )
    where = f"the {stream} prefix"
    if "control_trans" in saved:  # trained without the network
        key_LHPD, value_LHPD = from_flat(_directly_trained(saved["control_trans"], made), made, where=where)
    else:
        flat_PN = run(saved, torch.tanh, suffix=_SUFFIXES[stream])
        if flat_PN.shape[1] == saved["wte.weight"].shape[1]:
            raise ForeignFormat(
                "it is the embedding-only variant, which makes input embeddings, not keys and values of "
                "every layer. Train a prefix instead"
            )
        key_LHPD, value_LHPD = from_flat(flat_PN, made, where=where)
    return key_LHPD[: sizes.layers], value_LHPD[: sizes.layers]


def _directly_trained(states: torch.Tensor, sizes: StreamGeometry) -> torch.Tensor:
    """The flat layout of `init_shallow`: flat already, or [2 * L, 1, H, P, D] when words were its start."""
    if states.ndim == 5 and states.shape[:3] == (2 * sizes.layers, 1, sizes.kv_heads):
        return states[:, 0].permute(2, 0, 1, 3).flatten(start_dim=1)
    per_token = width(sizes)
    return states.reshape(-1, per_token) if states.ndim == 1 and states.numel() % per_token == 0 else states
