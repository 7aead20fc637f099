"""Peak memory of a training step above the loaded base model, each way in a process of its own.

Run as `python -m foreword.research.bench.memory`, it measures one way and prints a number of bytes.

Processes: what has to be measured in one of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from foreword.base.base_model import BaseModel
from foreword.encoding import EncodedExample, encode
from foreword.errors import ForewordError
from foreword.models import resolve
from foreword.research.bench import data, room
from foreword.research.bench.peak_memory import peak, reset_peak
from foreword.research.bench.train_step import step_of
from foreword.training.settings import make_settings
from foreword.training.trainer import Trainer, build_trainer


class MeasurementFailed(ForewordError):
    """The process that was to be measured ended without a figure; says what it wrote."""


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


# -- Peak memory of a training step above the loaded base model, each way in a process of its own --


WAYS = ("Foreword", "Foreword, checkpointing", "PEFT", "PEFT, projection")
STEPS = 4


def check(base: BaseModel, rows: Sequence[EncodedExample], size: int) -> None:
    """See that a copy of the base and a step fit into this machine's memory, beside the base that is loaded.

    Raises:
        UsageError: they do not.
    """
    some = sorted(rows, key=lambda row: row.tokens)[:size]
    needed = room.step(base, sum(row.tokens for row in some), sum(len(row.target_ids) for row in some))
    needed += room.weights(base) + room.packed_copies(base)
    room.check(needed, base.device, f"a step of {size} examples")


def measure(
    base: str,
    path: Path | None,
    size: int,
    length: int,
    *,
    peft: bool,
    rounds: int,
    on_round: Callable[[int], None] = lambda number: None,
) -> dict[str, list[int]]:
    """Bytes by way, round by round, the ways in turns.

    Raises:
        MeasurementFailed: a process that ended otherwise.
    """
    found: dict[str, list[int]] = {way: [] for way in WAYS if peft or not way.startswith("PEFT")}
    for number in range(rounds):
        for way, measured in found.items():
            measured.append(_in_a_process(way, base, path, size, length))
        on_round(number + 1)
    return found


def above_the_base(model: Any, step: Callable[[int], object], steps: int) -> int:
    """Bytes that `steps` steps need at most above what the process has when they begin.

    Weights come from a memory-mapped file, of which a page counts from its first use on: all are read first.
    """
    for parameter in model.parameters():
        parameter.detach().sum()
    gc.collect()
    before = reset_peak()
    for number in range(steps):
        step(number)
    return (peak() - before) * 1024


def _in_a_process(way: str, base: str, path: Path | None, size: int, length: int) -> int:
    threads = torch.get_num_threads()
    command = [sys.executable, "-m", "foreword.research.bench.memory", "--way", way, "--base", base]
    command += ["--size", str(size), "--length", str(length), "--threads", str(threads)]
    command += [] if path is None else ["--data", str(path)]
    return int(json.loads(run(way, command, threads))["bytes"])


def _measure_here(way: str, name: str, path: Path | None, size: int, length: int) -> int:
    base = BaseModel.load(name, dtype=torch.float32, device="cpu")
    rows, _ = encode(data.examples(path, STEPS * size), base.tokenizer, base.template)
    settings = make_settings(
        length=length,
        batch_size=size,
        steps=STEPS,
        gradient_checkpointing=way.endswith("checkpointing"),
    )
    prefix_trainer = build_trainer(base, settings, rows, [])
    if not way.startswith("PEFT"):
        return above_the_base(base.model, step_of(base, [prefix_trainer]), STEPS)
    del base
    gc.collect()
    return _peft(way, name, length, [_batch(prefix_trainer, number) for number in range(STEPS)])


def _batch(prefix_trainer: Trainer, number: int) -> list[EncodedExample]:
    prefix_trainer.step = number
    return prefix_trainer.batch()


def _peft(way: str, name: str, length: int, batches: Sequence[Sequence[EncodedExample]]) -> int:
    from foreword.research.bench import peft as peft_peer

    model = peft_peer.load(str(resolve(name).path), length=length, projection=way.endswith("projection"))
    step = peft_peer.trainer(model, learning_rate=1e-3, warmup=0, steps=STEPS)
    return above_the_base(model, lambda number: step(batches[number]), STEPS)


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
