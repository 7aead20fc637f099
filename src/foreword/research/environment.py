"""Environment: on what a figure was measured, gathered here and written as reports have it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers

from foreword import __version__
from foreword.base.base_model import BaseModel
from foreword.base.prepacked_linear import describe_processor
from foreword.reporting.markdown import table


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
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def conditions(
    command: str, base: str, sessions: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> str:
    """The section of a report that says how its figures came about: command, base, hardware and settings.

    Args:
        command: that makes these figures, all of them.
        sessions: the starts that made them in fact, listed where they were others.
    """
    machines = dict.fromkeys(_machine(session) for session in sessions)
    commands = list(dict.fromkeys(session["command"] for session in sessions))
    starts = "".join(f"{number}. `{each}`\n" for number, each in enumerate(commands, 1))
    made = (
        "" if commands == [command] else f"What it shows was made in these starts of the run:\n\n{starts}\n"
    )
    rows = [[name, "default" if value is None else str(value)] for name, value in settings.items()]
    return (
        f"## How it was measured\n\n```\n{command}\n```\n\n{made}"
        f"- Base model: {base}\n"
        f"- Hardware: {'; then '.join(machines)}\n\n"
        f"{table(['setting', 'value'], rows)}"
    )


def counted(number: int, noun: str) -> str:
    """A number and what it is of, in the plural where it needs one."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _machine(session: Mapping[str, Any]) -> str:
    packages = {
        name: session[name] for name in ("torch", "transformers", "peft", "foreword") if name in session
    }
    versions = [f"{name} {version}" for name, version in (packages | session.get("metrics", {})).items()]
    return (
        f"{session['device']}, {counted(session['threads'], 'thread')} on {session['cores']} cores, "
        f"{session['system']}; Python {session['python']}, {', '.join(versions)}"
    )
