"""Import of a folder that PEFT saved (prefix tuning, cartridges), and export of one that PEFT loads.

PEFT saves the keys and values themselves, as its cache takes them, and its text starts at position P like
ours: nothing is computed, the numbers are the same bit for bit. A folder is a config, one tensor and a page
for people.

The tensor has room for every layer of the model. One that shares keys and values with another (Gemma 3n and
4) gets the other's prefix there as here, and what stands in its own room is not read. Where sizes differ by
layer (Gemma 4), all rooms are of one size, of which a smaller layer takes the first heads and the first
numbers of each head; one that is larger gets no prefix from PEFT.

Shapes: L layers, H key/value heads, P prefix length, D head size, N numbers of one virtual token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from foreword.base.base_model import BaseModel
from foreword.errors import CannotWrite, ForeignFormat, GeometryMismatch, NotExportable, OutputExists
from foreword.files import writing_folder
from foreword.interop.card import peft_card, public_name, warn_if_other
from foreword.interop.conversion import from_flat, to_flat
from foreword.interop.foreign_files import find_file, naming, read_json, read_tensors
from foreword.prefix import Origin, Prefix
from foreword.prefix_sizes import StreamGeometry, tensor_names

CONFIG = "adapter_config.json"
SAFETENSORS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
TENSOR = "prompt_embeddings"
CARD = "README.md"

_WHAT = "a folder that PEFT saved with save_pretrained"
_TYPES = ("PREFIX_TUNING", "CARTRIDGE")


def import_peft(folder: str | Path, base: BaseModel) -> Prefix:
    """The prefix in a folder saved by PEFT's `save_pretrained`.

    Args:
        base: the model it was trained for. PEFT keeps no fingerprint, so this is taken at its word.

    Raises:
        ForeignFormat: another method than prefix tuning or cartridge, or other tensors than those; a base
            that is an encoder-decoder or a hybrid.
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
    if base.is_encoder_decoder:
        raise ForeignFormat(
            f"{folder} can't be imported for {base.name}: PEFT gives the encoder and the cross-attention "
            "of an encoder-decoder no keys and values, and the decoder those of half its layers twice. "
            "Train a prefix for it with Foreword"
        )
    if base.is_hybrid:
        raise ForeignFormat(
            f"{folder} can't be imported for {base.name}, which is a hybrid: PEFT puts keys and values into "
            "every layer from the first on, and a prefix here has those of its attention layers alone. Train "
            "a prefix for it with Foreword"
        )
    rooms = _rooms(base)
    if base.geometry.streams["decoder"].alike is None:
        rooms = _rooms_of(config, base, folder)
    _check_config(config, rooms, flat_PN, folder)
    with naming(file):
        key_LHPD, value_LHPD = from_flat(flat_PN, rooms, where=TENSOR)
        prefix = Prefix(
            tensors=_from_rooms(key_LHPD, value_LHPD, base.geometry.streams["decoder"]),
            base=base.identity,
            template=base.raw_template,
            positions=base.positions,
            origin=Origin(parameterization=f"imported from PEFT ({config['peft_type']})"),
        )
    prefix.check_dtype(base.dtype)
    warn_if_other(config.get("base_model_name_or_path"), base)
    return prefix


def _check_method(config: dict[str, Any], folder: Path) -> None:
    method = config.get("peft_type")
    if method is None and "config" in config:
        raise ForeignFormat(f"{folder} was saved by adapters, not PEFT; use `foreword import adapters`")
    if method not in _TYPES:
        raise ForeignFormat(
            f"{folder} holds PEFT's method {method!r}; expected {' or '.join(_TYPES)}, whose result is keys "
            "and values. Other methods change weights or input embeddings: train a prefix for that task "
            "instead"
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


def _check_config(config: dict[str, Any], sizes: StreamGeometry, flat_PN: torch.Tensor, folder: Path) -> None:
    """A tensor of the right width can still be of other heads: only the config tells."""
    heads, key_dim, _ = sizes.by_layer[0]
    expected = {
        "num_layers": sizes.layers,
        "num_attention_heads": heads,
        "token_dim": heads * key_dim,
        "num_virtual_tokens": flat_PN.shape[0] if flat_PN.ndim else 0,
    }
    for name, wanted in expected.items():
        if (found := config.get(name)) is not None and found != wanted:
            origin = f"its {TENSOR} has" if name == "num_virtual_tokens" else f"the base ({sizes}) has"
            raise GeometryMismatch(
                f"{folder}: {CONFIG} says {name} = {found!r}, {origin} {wanted}; give the base model that "
                "it was trained for"
            )


def _rooms(base: BaseModel) -> StreamGeometry:
    """What PEFT (0.21) gives every layer of a base: where sizes differ, room for the largest head size.

    It takes the number of heads from the first layer with that head size; here it is the smallest of them, so
    that `_too_large` names each layer that may get no prefix.
    """
    sizes = base.geometry.streams["decoder"]
    shared = getattr(base.model.config.get_text_config(decoder=True), "num_kv_shared_layers", 0)
    dim = max(key_dim for _, key_dim, _ in sizes.by_layer)
    heads = min(heads for heads, key_dim, _ in sizes.by_layer if key_dim == dim)
    return StreamGeometry(sizes.layers + shared, *(sizes.alike or (heads, dim, dim)))


def _rooms_of(config: Mapping[str, Any], base: BaseModel, folder: Path) -> StreamGeometry:
    """What the tensor of a folder has for every layer of a base whose sizes differ.

    Raises:
        ForeignFormat: its config does not say, or some layers got no prefix.
    """
    heads, token_dim = config.get("num_attention_heads"), config.get("token_dim")
    if type(heads) is not int or type(token_dim) is not int or heads < 1 or token_dim % heads:
        raise ForeignFormat(
            f"{folder}: {CONFIG} says num_attention_heads = {heads!r}, token_dim = {token_dim!r}; expected "
            "numbers of which the first divides the second"
        )
    sizes, dim = base.geometry.streams["decoder"], token_dim // heads
    rooms = StreamGeometry(_rooms(base).layers, heads, dim, dim)
    if too_large := _too_large(sizes, rooms):
        raise ForeignFormat(
            f"PEFT gave the layers {too_large} of {base.name} no prefix: its tensor has room for {heads} "
            f"key/value heads x {dim}, and they are larger (the base has {sizes}). Here a prefix has keys "
            "and values for all of them; train it with Foreword"
        )
    return rooms


def _too_large(sizes: StreamGeometry, rooms: StreamGeometry) -> list[int]:
    """The layers that PEFT leaves without a prefix."""
    heads, dim, _ = rooms.by_layer[0]
    return [layer for layer, (own, *dims) in enumerate(sizes.by_layer) if own > heads or max(dims) > dim]


def _from_rooms(
    key_LHPD: torch.Tensor, value_LHPD: torch.Tensor, sizes: StreamGeometry
) -> dict[str, torch.Tensor]:
    """The tensors of a prefix: what each of its layers takes of its room."""
    if sizes.alike is not None:
        return {"decoder.key": key_LHPD[: sizes.layers], "decoder.value": value_LHPD[: sizes.layers]}
    return tensor_names(
        {
            f"decoder.{layer}": (
                key_LHPD[layer, :heads, :, :key_dim],
                value_LHPD[layer, :heads, :, :value_dim],
            )
            for layer, (heads, key_dim, value_dim) in enumerate(sizes.by_layer)
        }
    )


def _in_rooms(prefix: Prefix, rooms: StreamGeometry) -> tuple[torch.Tensor, torch.Tensor]:
    """The reverse of `_from_rooms`, zero where no layer reads."""
    heads, dim, _ = rooms.by_layer[0]
    key_LHPD, value_LHPD = torch.zeros(2, rooms.layers, heads, prefix.length, dim, dtype=prefix.dtype)
    for layer, pair in enumerate(prefix.layers()):
        for states_LHPD, own_HPD in zip((key_LHPD, value_LHPD), pair, strict=True):
            states_LHPD[layer, : own_HPD.shape[0], :, : own_HPD.shape[2]] = own_HPD
    return key_LHPD, value_LHPD


def export_peft(prefix: Prefix, folder: str | Path, base: BaseModel, *, overwrite: bool = False) -> None:
    """Write a folder for PEFT's `PeftModel.from_pretrained`: whole, or not at all.

    PEFT has no place for the template, so that the folder's README tells it to people.

    Args:
        base: the model the prefix belongs to.
        overwrite: replace a folder that an earlier export wrote.

    Raises:
        NotExportable: a prefix of an encoder-decoder or a hybrid, one with keys and values of different
            size, an infix, or one for layers to which PEFT gives none.
        GeometryMismatch, WrongBaseModel: the prefix is not of this base.
        OutputExists: the folder is there and `overwrite` is false.
        CannotWrite: no right or space, or the folder holds other files than an export.
    """
    folder = Path(folder)
    base.check_fits(prefix)
    if prefix.streams != ("decoder",) or base.is_encoder_decoder:
        raise NotExportable(
            f"the prefix has the streams {', '.join(prefix.streams)} of an encoder-decoder ({base.name}); "
            "PEFT gives its encoder and cross-attention nothing, so the result would be another. Use it "
            "with Foreword"
        )
    if base.is_hybrid:
        raise NotExportable(
            f"{base.name} is a hybrid: its prefix has keys and values for its attention layers alone, and "
            "PEFT puts those it has into every layer from the first on. Use it with Foreword"
        )
    if prefix.template.placement != "prefix":
        raise NotExportable(
            "the prefix is an infix, which the source does not see; PEFT shows it to all text, so the result "
            "would be another. Use it with Foreword"
        )
    sizes, rooms = prefix.geometry.streams["decoder"], _rooms(base)
    if different := next(((k, v) for _, k, v in sizes.by_layer if k != v), None):
        raise NotExportable(
            f"the prefix has keys of size {different[0]} and values of {different[1]}; PEFT knows one size "
            "for both"
        )
    if sizes.alike is None and ("gemma4" not in base.model.config.model_type or _too_large(sizes, rooms)):
        raise NotExportable(
            f"the sizes of the prefix differ by layer ({sizes}). PEFT has one size for all, which it cuts "
            "for the smaller layers of Gemma 4 alone, and layers of more heads than that of the largest head "
            f"size get no prefix, so the result for {base.name} would be another. Use it with Foreword"
        )
    heads, dim, _ = rooms.by_layer[0]
    config = {
        "auto_mapping": None,
        "base_model_name_or_path": public_name(base.name, base.revision) or base.name,
        "encoder_hidden_size": heads * dim,
        "inference_mode": True,
        "num_attention_heads": heads,
        "num_layers": rooms.layers,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": prefix.length,
        "peft_type": "PREFIX_TUNING",
        "prefix_projection": False,
        "revision": base.revision,
        "task_type": "CAUSAL_LM",
        "token_dim": heads * dim,
    }
    flat_PN = to_flat(*_in_rooms(prefix, rooms))
    contents = {
        CONFIG: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
        SAFETENSORS: bytes(safetensors.torch.save({TENSOR: flat_PN}, metadata={"format": "pt"})),
        CARD: peft_card(prefix).encode(),
    }
    _check_folder(folder, set(contents), overwrite=overwrite)
    try:
        with writing_folder(folder) as temporary:
            for name, content in contents.items():
                (temporary / name).write_bytes(content)
    except OSError as error:
        raise CannotWrite(
            f"{folder} could not be written: {error.strerror or error}; nothing was changed"
        ) from error


def _check_folder(folder: Path, ours: set[str], *, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise CannotWrite(f"{folder} is a file; give the name of a folder to write")
    if folder.exists() and not overwrite:
        raise OutputExists(f"{folder} exists already; choose another name or pass --overwrite to replace it")
    if folder.exists() and (others := sorted({entry.name for entry in folder.iterdir()} - ours)):
        raise CannotWrite(
            f"{folder} holds other files than an export ({', '.join(others[:3])}), which --overwrite would "
            "delete; choose another folder"
        )
    if not folder.parent.is_dir():
        raise CannotWrite(f"the folder {folder.parent} of {folder.name} does not exist; create it first")
