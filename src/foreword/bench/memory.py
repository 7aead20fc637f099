"""Peak memory of a training step above the loaded base model, each way in a process of its own.

Run as `python -m foreword.bench.memory`, it measures one way and prints a number of bytes.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from foreword.base import BaseModel
from foreword.bench import data
from foreword.bench.peak_memory import peak, reset_peak
from foreword.encoding import encode
from foreword.errors import ForewordError
from foreword.models import resolve
from foreword.training.beginning import build_learner
from foreword.training.loop import train_step
from foreword.training.train import make_settings

WAYS = ("Foreword", "Foreword, checkpointing", "Foreword, packed", "PEFT", "PEFT, projection")
STEPS = 4


class MeasurementFailed(ForewordError):
    """The process that was to be measured ended without a figure; says what it wrote."""


def measure(base: str, path: Path | None, size: int, length: int, *, peft: bool) -> dict[str, int]:
    """Bytes by way.

    Raises:
        MeasurementFailed: a process that ended otherwise.
    """
    ways = [way for way in WAYS if peft or not way.startswith("PEFT")]
    return {way: _in_a_process(way, base, path, size, length) for way in ways}


def _in_a_process(way: str, base: str, path: Path | None, size: int, length: int) -> int:
    command = [sys.executable, "-m", "foreword.bench.memory", "--way", way, "--base", base]
    command += ["--size", str(size), "--length", str(length)]
    command += ["--threads", str(torch.get_num_threads())]
    command += [] if path is None else ["--data", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        raise MeasurementFailed(f"measuring {way} ended with status {done.returncode}: {last[0]}")
    return int(json.loads(done.stdout)["bytes"])


def _measure_here(way: str, name: str, path: Path | None, size: int, length: int) -> int:
    base = BaseModel.load(name, dtype=torch.float32, device="cpu")
    rows, _ = encode(data.examples(path, STEPS * size), base.tokenizer, base.template)
    settings = make_settings(
        length=length,
        batch_size=size,
        steps=STEPS,
        gradient_checkpointing=way.endswith("checkpointing"),
        packed=way.endswith("packed"),
    )
    learner = build_learner(base, settings, rows, [])
    if not way.startswith("PEFT"):
        before = _all_read(base.model)
        for _ in range(STEPS):
            (report,) = train_step(base, [learner])
            if isinstance(report, Exception):
                raise report
        return (peak() - before) * 1024
    from foreword.bench import peft_peer

    del base
    model = peft_peer.load(str(resolve(name).path), length=length, projection=way.endswith("projection"))
    step = peft_peer.trainer(model, learning_rate=1e-3, warmup=0, steps=STEPS)
    before = _all_read(model)
    for number in range(STEPS):
        learner.step = number
        step(learner.batch())
    return (peak() - before) * 1024


def _all_read(model: Any) -> int:
    """KiB of this process when every weight is in memory: of a memory-mapped file a page counts once it is
    used, and a model that has computed nothing yet would be charged for its weights in the step."""
    for parameter in model.parameters():
        parameter.detach().sum()
    gc.collect()
    return reset_peak()


def _main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--way", choices=WAYS, required=True)
    parser.add_argument("--base", required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    found = _measure_here(given.way, given.base, given.data, given.size, given.length)
    print(json.dumps({"bytes": found}))


if __name__ == "__main__":
    _main()
