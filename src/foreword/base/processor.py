"""Processor: which one this machine has."""

from __future__ import annotations

import platform
from pathlib import Path

DESCRIBED = Path("/proc/cpuinfo")
"""Where Linux says; Python does not know it there."""


def describe_processor() -> dict[str, str]:
    """What the system says of it by name, such as `model name`; at least that one."""
    unknown = {"model name": platform.processor() or platform.machine()}
    if not DESCRIBED.exists():
        return unknown
    pairs = (line.partition(":") for line in DESCRIBED.read_text(errors="replace").splitlines())
    return unknown | {name.strip(): value.strip() for name, colon, value in pairs if colon}
