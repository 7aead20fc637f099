"""Room: whether a measurement fits into this machine's memory, said before it starts.

Estimates are what the work needs at least; what passes here can still be too large.
"""

from __future__ import annotations

from pathlib import Path

import torch

from foreword.base.base_model import BaseModel
from foreword.base.prepacked_linear import MOST_BYTES
from foreword.errors import UsageError
from foreword.research.bench import roofline

GROUP = Path("/sys/fs/cgroup")
"""Where Linux tells a container its own limit (control groups, version 2)."""


def check(needed: int, device: torch.device, what: str) -> None:
    """See that `needed` bytes are free.

    Raises:
        UsageError: they are not.
    """
    free = available(device)
    if free is not None and needed > free:
        raise UsageError(
            f"{what} needs at least {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; ask for fewer "
            "or shorter rows, a shorter prefix, or a smaller base"
        )


def available(device: torch.device) -> int | None:
    """Bytes that are free; None where nobody says (no Linux, no CUDA)."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    told = Path("/proc/meminfo")
    if device.type != "cpu" or not told.exists():
        return None
    lines = dict(line.split(":", 1) for line in told.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    limit, used = GROUP / "memory.max", GROUP / "memory.current"
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        free = min(free, int(most) - int(used.read_text()))
    return free


def weights(base: BaseModel) -> int:
    """Bytes of another copy of the base model."""
    return sum(parameter.nbytes for parameter in base.model.parameters())


def packed_copies(base: BaseModel) -> int:
    """Bytes of the two copies that packed training keeps; 0 where nothing is packed."""
    linear: int = sum(module.weight.nbytes for _, module in roofline.weights_of(base))  # type: ignore[misc]
    return 2 * linear if base.device.type == "cpu" and linear <= MOST_BYTES else 0


def step(base: BaseModel, tokens: int, targets: int) -> int:
    """Bytes of a training step: outputs of linear layers, logits and the logits' gradient."""
    head: int = base.model.get_output_embeddings().weight.shape[0]
    outputs = sum(_outputs(module) for _, module in roofline.weights_of(base))
    return (outputs * tokens + 2 * head * targets) * base.dtype.itemsize


def states(base: BaseModel, tokens: int) -> int:
    """Bytes of the inputs and outputs of the model's largest product: the logits."""
    return int(sum(base.model.get_output_embeddings().weight.shape)) * tokens * base.dtype.itemsize


def cache(base: BaseModel, rows: int, tokens: int) -> int:
    """Bytes of the keys and values of so many rows, of so many tokens each, prefix among them."""
    return rows * base.geometry.parameters(tokens) * base.dtype.itemsize


def _outputs(module: torch.nn.Module) -> int:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return int(weight.shape[0] if isinstance(module, torch.nn.Linear) else weight.shape[1])
