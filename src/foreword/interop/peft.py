"""Import of a folder that PEFT saved: prefix tuning and cartridges.

PEFT saves the keys and values themselves, as its cache takes them, and its text starts at position
P like ours: nothing is computed, the numbers are the same bit for bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from foreword.base.base_model import BaseModel
from foreword.errors import ForeignFormat, GeometryMismatch
from foreword.geometry import StreamGeometry
from foreword.interop.base_names import warn_if_other
from foreword.interop.conversion import from_flat
from foreword.interop.foreign_files import find_file, naming, read_json, read_tensors
from foreword.prefix import Origin, Prefix
from foreword.template import RAW

CONFIG = "adapter_config.json"
SAFETENSORS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
TENSOR = "prompt_embeddings"

_WHAT = "a folder that PEFT saved with save_pretrained"
_TYPES = ("PREFIX_TUNING", "CARTRIDGE")


def import_peft(folder: str | Path, base: BaseModel) -> Prefix:
    """The prefix in a folder saved by PEFT's `save_pretrained`.

    Args:
        base: the model it was trained for. PEFT keeps no fingerprint, so this is taken at its word.

    Raises:
        ForeignFormat: another method than prefix tuning or cartridge, or other tensors than those.
        UnsafePickle: `adapter_model.bin` holds more than tensors.
        GeometryMismatch: made for a base of other sizes.
        NonFinitePrefix: NaN or infinity in it.
        CannotRead: no such folder.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG, what=_WHAT)
    _check_method(config, folder)
    file = find_file(folder, (SAFETENSORS, PICKLE), what=_WHAT)
    flat_PN = _embeddings(read_tensors(file), file, config)
    sizes = _sizes(base, folder)
    _check_config(config, sizes, flat_PN, folder)
    with naming(file):
        key_LHPD, value_LHPD = from_flat(flat_PN, sizes, where=TENSOR)
        prefix = Prefix(
            tensors={"decoder.key": key_LHPD, "decoder.value": value_LHPD},
            base=base.identity,
            template=RAW,
            positions=base.positions,
            origin=Origin(parameterization=f"imported from PEFT ({config['peft_type']})"),
        )
    warn_if_other(config.get("base_model_name_or_path"), base)
    return prefix


def _check_method(config: dict[str, Any], folder: Path) -> None:
    found = config.get("peft_type")
    if found in _TYPES:
        return
    if found is None and "config" in config:
        raise ForeignFormat(f"{folder} was saved by adapters, not PEFT; use `foreword import adapters`")
    raise ForeignFormat(
        f"{folder} holds PEFT's method {found!r}; expected {' or '.join(_TYPES)}, whose result is keys and "
        "values. Other methods change weights or input embeddings: train a prefix for that task instead"
    )


def _embeddings(tensors: dict[str, torch.Tensor], file: Path, config: dict[str, Any]) -> torch.Tensor:
    if set(tensors) == {TENSOR}:
        return tensors[TENSOR]
    names = sorted(tensors)
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    if any("transform." in name for name in names):
        raise ForeignFormat(
            f"{file} still holds the network that makes the prefix (prefix_projection): {shown}. PEFT's "
            f"save_pretrained runs it once and saves {TENSOR} alone; save the model that way"
        )
    if TENSOR in tensors:
        raise ForeignFormat(
            f"{file} holds more than a prefix: {shown}. It was trained together with other weights "
            f"(modules_to_save: {config.get('modules_to_save')}), without which it is not the same"
        )
    raise ForeignFormat(
        f"{file} holds {shown or 'no tensors'}; expected {TENSOR}, as save_pretrained writes it"
    )


def _sizes(base: BaseModel, folder: Path) -> StreamGeometry:
    if base.is_encoder_decoder:
        raise ForeignFormat(
            f"{folder} can't be imported for {base.name}: PEFT gives the encoder and the cross-attention "
            "of an encoder-decoder no keys and values, and the decoder those of half its layers twice. "
            "Train a prefix for it with Foreword"
        )
    return base.geometry.streams["decoder"]


def _check_config(config: dict[str, Any], sizes: StreamGeometry, flat_PN: torch.Tensor, folder: Path) -> None:
    """A tensor of the right width can still be of other heads: only the config tells."""
    expected = {
        "num_layers": sizes.layers,
        "num_attention_heads": sizes.kv_heads,
        "token_dim": sizes.kv_heads * sizes.key_dim,
        "num_virtual_tokens": flat_PN.shape[0] if flat_PN.ndim else 0,
    }
    for name, wanted in expected.items():
        if (found := config.get(name)) is not None and found != wanted:
            origin = f"its {TENSOR} has" if name == "num_virtual_tokens" else f"the base ({sizes}) has"
            raise GeometryMismatch(
                f"{folder}: {CONFIG} says {name} = {found!r}, {origin} {wanted}; give the base model that "
                "it was trained for"
            )
