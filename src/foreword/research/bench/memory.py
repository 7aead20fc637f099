"""Peak memory of training steps above the loaded base model, each measurement in a process of its own.

Run as `python -m foreword.research.bench.memory`, with its arguments as one JSON object, it makes one
measurement and prints a number of bytes.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from foreword.base.base_model import BaseModel
from foreword.encoding import encode
from foreword.errors import ForewordError, UsageError
from foreword.models import resolve
from foreword.research.bench import workload
from foreword.research.bench.train_step import batch_at, step_of
from foreword.research.bench.workload import Workload
from foreword.training.settings import make_settings
from foreword.training.trainer import build_trainer

WAYS = ("Foreword", "Foreword, checkpointing", "PEFT", "PEFT, projection")
STEPS = 4

WORKLOAD_STEPS = 2
"""The first makes the optimiser's state, the second has it from the start."""


class MeasurementFailed(ForewordError):
    """The process that was to be measured ended without a figure; says what it wrote."""


def check_device(base: BaseModel) -> None:
    """See that peak memory can be measured where the base is.

    Raises:
        UsageError: neither a CPU nor a CUDA device.
    """
    if base.device.type not in ("cpu", "cuda"):
        raise UsageError(
            f"{base.name} is on {base.device}, where peak memory is not measured; take --device cpu or cuda"
        )


def measure(
    base: BaseModel,
    path: Path | None,
    size: int,
    length: int,
    *,
    peft: bool,
    rounds: int,
    on_round: Callable[[int], None],
) -> dict[str, list[int]]:
    """Bytes by way, round by round, the ways in turns.

    Raises:
        MeasurementFailed: a process that ended otherwise.
    """
    bytes_of: dict[str, list[int]] = {way: [] for way in WAYS if peft or not way.startswith("PEFT")}
    data = None if path is None else str(path)
    for number in range(rounds):
        for way, measured in bytes_of.items():
            measured.append(_in_a_process(way, base, way=way, data=data, size=size, length=length))
        on_round(number + 1)
    return bytes_of


def of_workload(base: BaseModel, work: Workload) -> int:
    """Bytes of a step of stated size above the loaded base model, on its device.

    Raises:
        MeasurementFailed: its process ended otherwise.
    """
    return _in_a_process(str(work), base, workload=asdict(work))


def run(what: str, command: Sequence[str], threads: int) -> str:
    """What the command writes to its standard output, computed with so many threads.

    Raises:
        MeasurementFailed: it ended with another status than 0.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        raise MeasurementFailed(f"measuring {what} ended with status {done.returncode}: {last[0]}")
    return done.stdout


def _in_a_process(what: str, base: BaseModel, **arguments: Any) -> int:
    threads = torch.get_num_threads()
    loading = {"base": base.name, "device": str(base.device), "dtype": str(base.dtype).removeprefix("torch.")}
    request = json.dumps({"threads": threads, **loading, **arguments})
    command = [sys.executable, "-m", "foreword.research.bench.memory", request]
    return int(json.loads(run(what, command, threads))["bytes"])


def status(name: str) -> int:
    """A figure of this process in KiB; on Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def above_the_base(model: Any, step: Callable[[int], object], steps: int) -> int:
    """Bytes that `steps` steps need at most above what the model's device holds when they begin.

    On CUDA that is what torch has allocated, on a CPU what the process has. There weights come from a
    memory-mapped file, of which a page counts from its first use on: all are read first.
    """
    gc.collect()
    if (device := model.device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        for number in range(steps):
            step(number)
        return torch.cuda.max_memory_allocated(device) - held
    for parameter in model.parameters():
        parameter.detach().sum()
    Path("/proc/self/clear_refs").write_text("5")  # the peak of this process is now its present size
    before = status("VmRSS")
    for number in range(steps):
        step(number)
    return (status("VmHWM") - before) * 1024


def _measure_here(request: Mapping[str, Any]) -> int:
    base = BaseModel.load(request["base"], dtype=request["dtype"], device=request["device"])
    if "workload" in request:
        trainers = workload.trainers(base, Workload(**request["workload"]))
        return above_the_base(base.model, step_of(base, trainers), WORKLOAD_STEPS)
    way, length, size = request["way"], request["length"], request["size"]
    path = None if request["data"] is None else Path(request["data"])
    rows, _ = encode(workload.examples(path, STEPS * size), base.tokenizer, base.template)
    settings = make_settings(
        length=length, batch_size=size, steps=STEPS, gradient_checkpointing=way.endswith("checkpointing")
    )
    trainer = build_trainer(base, settings, rows, [])
    if not way.startswith("PEFT"):
        return above_the_base(base.model, step_of(base, [trainer]), STEPS)
    batches = [batch_at(trainer, number) for number in range(STEPS)]
    from foreword.research.bench import peft as peft_peer

    folder, projection = str(resolve(request["base"]).path), way.endswith("projection")
    model = peft_peer.load(folder, length=length, projection=projection, like=base)
    del base, trainer
    gc.collect()
    step = peft_peer.trainer(model, learning_rate=1e-3, warmup=0, steps=STEPS)
    return above_the_base(model, lambda number: step(batches[number]), STEPS)


if __name__ == "__main__":
    _request = json.loads(sys.argv[1])
    torch.set_num_threads(_request["threads"])
    print(json.dumps({"bytes": _measure_here(_request)}))
