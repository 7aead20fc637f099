"""Import of a folder that adapters (AdapterHub) saved with `save_adapter`.

Its text starts at position 0, so keys are rotated to our rule; a bottleneck that was not ejected is
run once. What its tensors are decides, not its config: an ejected bottleneck still says `flat: false`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from foreword.base.base_model import BaseModel
from foreword.errors import ForeignFormat, WrongBaseModel
from foreword.interop.card import warn_if_other
from foreword.interop.conversion import Activation, from_flat, run, text_from_zero_to_after
from foreword.interop.foreign_files import find_file, naming, read_json, read_tensors
from foreword.prefix import Origin, Prefix, Stream

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter.safetensors", "pytorch_adapter.safetensors", "pytorch_adapter.bin")

_WHAT = "a folder that adapters saved with save_adapter"
_STREAMS: dict[str, Stream] = {"self": "decoder", "encoder": "encoder", "cross": "cross"}
_TENSOR = re.compile(
    r"(?:^|\.)prefix_tunings\.[^.]+\.(?P<place>\w+)_prefix\.(?P<part>(?:wte|control_trans)\b.*)"
)


def import_adapters(folder: str | Path, base: BaseModel) -> Prefix:
    """The prefix in a folder saved by adapters' `save_adapter`.

    Args:
        base: the model it was trained for. adapters keeps no fingerprint, so this is taken at its word.

    Raises:
        ForeignFormat: another method, gates, layers left out, or positions that can't be converted.
        UnsafePickle: `pytorch_adapter.bin` holds more than tensors.
        WrongBaseModel, GeometryMismatch: made for another architecture or a base of other sizes.
        NonFinitePrefix: NaN or infinity in it.
        CannotRead: no such folder.
    """
    folder = Path(folder)
    described = read_json(folder / CONFIG, what=_WHAT)
    config = _check_config(described, base, folder)
    file = find_file(folder, WEIGHTS, what=_WHAT)
    with torch.no_grad(), naming(file):
        tensors: dict[str, torch.Tensor] = {}
        for stream, parts in _by_stream(read_tensors(file), file).items():
            sizes = base.geometry.streams.get(stream)
            if sizes is None:
                raise WrongBaseModel(f"it has a prefix for {stream}, and {base.name} has no such stream")
            flat_PN = _flat(parts, config)
            key_LHPD, value_LHPD = from_flat(flat_PN, sizes, where=f"the {stream} prefix")
            if stream == "decoder":
                key_LHPD = text_from_zero_to_after(key_LHPD, base)
            tensors |= {f"{stream}.key": key_LHPD, f"{stream}.value": value_LHPD}
        prefix = Prefix(
            tensors=tensors,
            base=base.identity,
            template=base.raw_template,
            origin=Origin(
                parameterization=f"imported from adapters ({described.get('version', 'any version')})"
            ),
        )
    prefix.check_dtype(base.dtype)
    warn_if_other(described.get("model_name"), base)
    return prefix


def _check_config(described: dict[str, Any], base: BaseModel, folder: Path) -> dict[str, Any]:
    config = described.get("config")
    if not isinstance(config, dict):
        if "peft_type" in described:
            raise ForeignFormat(f"{folder} was saved by PEFT, not adapters; use `foreword import peft`")
        raise ForeignFormat(f"{folder}: {CONFIG} describes no adapter; expected {_WHAT}")
    if config.get("architecture") != "prefix_tuning":
        raise ForeignFormat(
            f"{folder} holds the method {config.get('architecture')!r} of adapters; expected "
            "'prefix_tuning'. Other methods are not keys and values: train a prefix for that task instead"
        )
    if config.get("use_gating"):
        raise ForeignFormat(
            f"{folder} uses gates, which scale its prefix anew for every text; a prefix is the same for "
            "every text. Train it without use_gating"
        )
    if config.get("leave_out"):
        raise ForeignFormat(
            f"{folder} leaves out the layers {config['leave_out']}; a prefix has keys and values in every "
            "layer. Train it without leave_out"
        )
    declared, expected = described.get("model_type"), base.model.config.model_type
    if declared != expected:
        raise WrongBaseModel(
            f"{folder} was trained for a model of type {declared!r}; {base.name} is of type {expected!r}. "
            "Give the base model that it was trained for"
        )
    if any(getattr(module, "has_relative_attention_bias", False) for module in base.model.modules()):
        raise ForeignFormat(
            f"{folder} was trained for {expected}, whose relative positions adapters counts with the "
            "prefix among the keys but not the queries: text saw its own text at other distances, and no "
            "prefix does that. Train it again with Foreword"
        )
    return config


def _by_stream(tensors: Mapping[str, torch.Tensor], file: Path) -> dict[Stream, dict[str, torch.Tensor]]:
    """adapters writes one prefix once for every attention layer; they must agree."""
    by_stream: dict[Stream, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        match = _TENSOR.search(name)
        if match is None:
            raise ForeignFormat(f"{name} is no part of a prefix; expected names with prefix_tunings")
        if match["place"] not in _STREAMS:
            raise ForeignFormat(
                f"{name}: {match['place']!r} is none of {', '.join(_STREAMS)}; models put together from two "
                "(EncoderDecoderModel) are not supported"
            )
        parts = by_stream.setdefault(_STREAMS[match["place"]], {})
        first = parts.setdefault(match["part"], tensor)
        if first.shape != tensor.shape or not torch.allclose(first, tensor, rtol=0, atol=0, equal_nan=True):
            raise ForeignFormat(
                f"{name} differs from another copy of it in the file; fetch {file.name} again"
            )
    if not by_stream:
        raise ForeignFormat("there are no tensors in it; expected a prefix")
    return by_stream


def _flat(parts: Mapping[str, torch.Tensor], config: dict[str, Any]) -> torch.Tensor:
    if set(parts) != {"control_trans"}:
        return run(parts, _activation(config))
    flat_N = parts["control_trans"]
    length = config.get("prefix_length")
    if not isinstance(length, int) or length < 1 or flat_N.numel() % length:
        raise ForeignFormat(
            f"prefix_length is {length!r} for {flat_N.numel()} numbers; fetch the folder again"
        )
    return flat_N.reshape(length, -1)


def _activation(config: dict[str, Any]) -> Activation:
    name = str(config.get("non_linearity")).lower()
    if name == "leakyrelu":
        return torch.nn.functional.leaky_relu
    from transformers.activations import ACT2FN

    if name not in ACT2FN:
        raise ForeignFormat(f"its bottleneck uses the activation {name!r}, which transformers does not know")
    return ACT2FN[name]  # type: ignore[no-any-return]
