"""A checkpoint in AWQ's file format, rounded here: no library that writes such files runs without a GPU.

The format is AutoAWQ's `gemm`: of each linear layer `[out, in]` the weights in 4 bits, asymmetric, a scale and a
zero for every group of inputs; eight values in an int32 along the outputs, in the order 0 2 4 6 1 3 5 7. AWQ's search
for scales of the activations is left out: it decides how good the weights are, not how they are kept.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

GROUP = 32
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def save_awq(plain: Path, awq: Path, dequantized: Path) -> None:
    """The model of folder `plain` as AWQ files, and with the same rounded weights as plain numbers."""
    tensors = load_file(plain / "model.safetensors")
    packed: dict[str, torch.Tensor] = {}
    rounded: dict[str, torch.Tensor] = {}
    for name, weight in tensors.items():
        if not name.endswith("proj.weight"):
            packed[name] = rounded[name] = weight.to(torch.float16)
            continue
        values, zeros, scales, rounded[name] = _rounded(weight)
        layer = name.removesuffix(".weight")
        packed[f"{layer}.qweight"], packed[f"{layer}.qzeros"] = _packed(values), _packed(zeros)
        packed[f"{layer}.scales"] = scales
    for folder, kept in ((awq, packed), (dequantized, rounded)):
        shutil.copytree(plain, folder)
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((awq / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": GROUP,
        "zero_point": True,
        "version": "gemm",
    }
    (awq / "config.json").write_text(json.dumps(config))


def _rounded(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`[in, out]` values 0 to 15, `[groups, out]` zeros and scales, and `[out, in]` what they stand for."""
    out, inputs = weight.shape
    groups = weight.float().reshape(out, inputs // GROUP, GROUP)
    low, high = groups.amin(dim=2).clamp(max=0), groups.amax(dim=2).clamp(min=0)
    scales = ((high - low) / 15).to(torch.float16)
    zeros = (-low / scales.float()).round().clamp(0, 15)
    steps = scales.float()[..., None]
    values = (groups / steps + zeros[..., None]).round().clamp(0, 15)
    meant = ((values - zeros[..., None]) * steps).reshape(out, inputs).to(torch.float16)
    return values.reshape(out, inputs).T.int(), zeros.T.int(), scales.T.contiguous(), meant


def _packed(values: torch.Tensor) -> torch.Tensor:
    """`[rows, out]` to `[rows, out / 8]`."""
    rows, out = values.shape
    eight = values.reshape(rows, out // 8, 8)[:, :, list(ORDER)].to(torch.int64)
    packed = (eight << (4 * torch.arange(8))).sum(dim=2)
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)
