"""Hardware: on what a figure was measured, as a report says it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch
import transformers

from foreword import __version__
from foreword.base import BaseModel


def describe_machine(base: BaseModel) -> dict[str, Any]:
    """Processor or GPU, threads, and versions of what computes; no name of the machine or its user."""
    on_gpu = base.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(base.device) if on_gpu else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "foreword": __version__,
    }


def _processor() -> str:
    described = Path("/proc/cpuinfo")  # Linux; platform.processor() is empty there
    if described.exists():
        for line in described.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
