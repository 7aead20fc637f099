"""Export of a prefix as a folder that PEFT loads: config, one tensor, and a page that says what it is."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch

from foreword.base.base_model import BaseModel
from foreword.errors import CannotWrite, NotExportable, OutputExists
from foreword.files import TEMPORARY_SUFFIX, flush_folder
from foreword.interop.base_names import public_name
from foreword.interop.card import peft_card
from foreword.interop.conversion import to_flat
from foreword.interop.peft import CONFIG, SAFETENSORS, TENSOR
from foreword.prefix import Prefix

CARD = "README.md"


def export_peft(prefix: Prefix, folder: str | Path, base: BaseModel, *, overwrite: bool = False) -> None:
    """Write a folder for PEFT's `PeftModel.from_pretrained`: whole, or not at all.

    PEFT has no place for the template, so that the folder's README tells it to people.

    Args:
        base: the model the prefix belongs to.
        overwrite: replace a folder that an earlier export wrote.

    Raises:
        NotExportable: a prefix of an encoder-decoder, one with keys and values of different size, or an
            infix.
        GeometryMismatch, WrongBaseModel: the prefix is not of this base.
        OutputExists: the folder is there and `overwrite` is false.
        CannotWrite: no right or space, or the folder holds other files than an export.
    """
    folder = Path(folder)
    prefix.check_fits(base.identity, base.geometry)
    if prefix.streams != ("decoder",) or base.is_encoder_decoder:
        raise NotExportable(
            f"the prefix has the streams {', '.join(prefix.streams)} of an encoder-decoder ({base.name}); "
            "PEFT gives its encoder and cross-attention nothing, so the result would be another. Use it "
            "with Foreword"
        )
    if prefix.template.placement != "prefix":
        raise NotExportable(
            "the prefix is an infix, which the source does not see; PEFT shows it to all text, so the result "
            "would be another. Use it with Foreword"
        )
    sizes = prefix.geometry.streams["decoder"]
    if sizes.key_dim != sizes.value_dim:
        raise NotExportable(
            f"the prefix has keys of size {sizes.key_dim} and values of {sizes.value_dim}; PEFT knows one "
            "size for both"
        )
    config = {
        "auto_mapping": None,
        "base_model_name_or_path": public_name(base.name, base.revision) or base.name,
        "encoder_hidden_size": sizes.kv_heads * sizes.key_dim,
        "inference_mode": True,
        "num_attention_heads": sizes.kv_heads,
        "num_layers": sizes.layers,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": prefix.length,
        "peft_type": "PREFIX_TUNING",
        "prefix_projection": False,
        "revision": base.revision,
        "task_type": "CAUSAL_LM",
        "token_dim": sizes.kv_heads * sizes.key_dim,
    }
    flat_PN = to_flat(prefix.key(), prefix.value())
    contents = {
        CONFIG: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
        SAFETENSORS: bytes(safetensors.torch.save({TENSOR: flat_PN}, metadata={"format": "pt"})),
        CARD: peft_card(prefix).encode(),
    }
    _write_folder(folder, contents, overwrite=overwrite)


def _write_folder(folder: Path, contents: dict[str, Any], *, overwrite: bool) -> None:
    _check_folder(folder, set(contents), overwrite=overwrite)
    temporary: Path | None = None
    try:
        temporary = Path(
            tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=TEMPORARY_SUFFIX)
        )
        made = temporary / "made"
        made.mkdir()
        for name, content in contents.items():
            with open(made / name, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():  # a folder can't be renamed over another one that is not empty
            folder.rename(temporary / "replaced")
        made.rename(folder)
        flush_folder(folder.parent)
    except OSError as error:
        if temporary is not None and (temporary / "replaced").exists() and not folder.exists():
            (temporary / "replaced").rename(folder)
        raise CannotWrite(
            f"{folder} could not be written: {error.strerror or error}; nothing was changed"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


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
