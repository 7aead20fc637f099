"""Checkpoints: one safetensors file from which a run goes on, bit for bit.

The header describes the run (settings, base model, data), so that a checkpoint of another run is
refused with the difference named, never continued by mistake. No pickle.

The rows of the log grow with the run, and safetensors reads no header above 100 MB; so they stand beside the
tensors, as the bytes of their JSON. Checkpoints of earlier releases have them in the header.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from foreword import files
from foreword.errors import CannotWrite, CheckpointMismatch, DamagedCheckpoint
from foreword.training.settings import described_now

HEADER_KEY = "foreword-checkpoint"
HISTORY = "history"
"""Name of the tensor that holds the rows of the log; in the header their place is empty."""
KEPT = 2
"""Checkpoints kept in a folder: the newest, and the one before it."""


def write(
    folder: Path, step: int, tensors: dict[str, torch.Tensor], data: dict[str, Any], run: dict[str, Any]
) -> Path:
    """Write the checkpoint of `step` and remove those older than the last `KEPT`.

    Raises:
        CannotWrite: no right or no space; the older checkpoints are still there.
    """
    path = folder / file_name(step)
    rows = bytearray(json.dumps(data[HISTORY]), "utf-8")
    header = json.dumps({"run": run, "data": {**data, HISTORY: []}}, sort_keys=True)
    tensors = tensors | {HISTORY: torch.frombuffer(rows, dtype=torch.uint8)}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    files.write_bytes(path, safetensors.torch.save(contiguous, metadata={HEADER_KEY: header}), overwrite=True)
    remove_old(folder)
    return path


def remove_old(folder: Path) -> None:
    """Remove all but the last `KEPT` checkpoints; what can't be removed now goes the next time."""
    for old in list_checkpoints(folder)[:-KEPT]:
        with contextlib.suppress(OSError):
            old.unlink()


def file_name(step: int) -> str:
    """What the checkpoint of a step is called."""
    return f"step-{step:07d}.checkpoint"


def step_of(path: Path) -> int:
    """The step that a checkpoint is of, by its name."""
    return int(path.stem.removeprefix("step-"))


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step-*.checkpoint"))


def read(path: Path, run: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and plain data of a checkpoint of the run described by `run`.

    Raises:
        CheckpointMismatch: another run's, with what differs.
        DamagedCheckpoint: not a checkpoint, or not all of it.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            header = json.loads((opened.metadata() or {})[HEADER_KEY])
            described, data = header["run"], header["data"]
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
        if (rows := tensors.pop(HISTORY, None)) is not None:
            data[HISTORY] = json.loads(rows.numpy().tobytes())
    except (safetensors.SafetensorError, KeyError, ValueError, OSError) as error:
        raise DamagedCheckpoint(
            f"{path} is damaged or not a checkpoint of Foreword ({error}); remove it to go on without it"
        ) from error
    described = {**described, "settings": described_now(described.get("settings", {}))}
    differences = _differences(described, run)
    if differences:
        raise CheckpointMismatch(
            f"{path.parent} holds a run with other settings: {'; '.join(differences)}. Use the same "
            "settings to go on with it, or another folder (or --overwrite) to start anew"
        )
    return tensors, data


def newest_run(folder: Path) -> dict[str, Any] | None:
    """The description of the run in a folder, by its newest checkpoint that can be read; None without one."""
    for path in reversed(list_checkpoints(folder)):
        with contextlib.suppress(safetensors.SafetensorError, KeyError, ValueError, OSError):
            with safetensors.safe_open(path, framework="pt") as opened:
                run: dict[str, Any] = json.loads((opened.metadata() or {})[HEADER_KEY])["run"]
            return run
    return None


def prepare_folder(folder: Path) -> None:
    """Make the folder for a run, and remove what killed runs in it had only begun to write.

    Raises:
        CannotWrite: a file of that name, or no right.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"the folder {folder} can't be made: {error.strerror}; choose another") from error
    files.remove_leftovers(folder, "step-*.checkpoint")


def _differences(old: dict[str, Any], new: dict[str, Any], path: str = "") -> list[str]:
    differences = []
    # Through JSON, as the old one went: tuples become lists, keys become text.
    new = json.loads(json.dumps(new))
    for name in sorted(set(old) | set(new)):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            differences += _differences(a, b, f"{path}{name}.")
        elif a != b:
            differences.append(f"{path}{name} is {b!r}, was {a!r}")
    return differences
