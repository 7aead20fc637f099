"""Hardware: on what a figure was measured, as a report says it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import torch
import transformers

from foreword import __version__
from foreword.base.base_model import BaseModel
from foreword.base.prepacked_linear import describe_processor


def describe_machine(base: BaseModel) -> dict[str, Any]:
    """Processor or GPU, threads, and versions of what computes; no name of the machine or its user."""
    on_gpu = base.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(base.device) if on_gpu else describe_processor()["model name"],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **package_versions("peft"),
        "foreword": __version__,
    }


def package_versions(*packages: str) -> dict[str, str]:
    """The version of each package, or that it is not installed."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
