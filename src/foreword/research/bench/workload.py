"""A workload: training steps of a stated size, on random tokens that no two rows share.

Run as `python -m foreword.research.bench.workload`, it measures the peak memory of one and prints a number
of bytes.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import torch

from foreword.base.base_model import BaseModel
from foreword.encoding import EncodedExample
from foreword.research.bench import memory, roofline
from foreword.research.bench.memory import above_the_base
from foreword.research.bench.train_step import step_of
from foreword.training.settings import make_settings
from foreword.training.trainer import Trainer, build_trainer

TARGETS = 4
"""A fourth of each text is target."""

STEPS_OF_MEMORY = 2
"""The first makes the optimiser's state, the second has it from the start."""


@dataclass(frozen=True)
class Workload:
    """Sizes of one step.

    Attributes:
        rows: of the batch, over all owners.
        text: tokens of each row.
        length: P, virtual tokens of each prefix.
        owners: each with a prefix of its own, and as many of the rows.
    """

    rows: int
    text: int
    length: int
    owners: int = 1


def examples(base: BaseModel, work: Workload) -> list[EncodedExample]:
    """`rows` rows of random tokens; the first of each is its own, so that none begin alike."""
    vocabulary = int(base.model.get_input_embeddings().weight.shape[0])
    chance = random.Random(0)
    targets = max(1, work.text // TARGETS)
    made = []
    for row in range(work.rows):
        ids = [row % vocabulary, *(chance.randrange(vocabulary) for _ in range(work.text))]
        made.append(EncodedExample(tuple(ids[:-targets]), tuple(ids[-targets:])))
    return made


def trainers(base: BaseModel, work: Workload) -> list[Trainer]:
    """One for each owner."""
    rows = examples(base, work)
    size = work.rows // work.owners
    settings = make_settings(length=work.length, batch_size=size, steps=1_000_000, init="random")
    return [
        build_trainer(base, settings, rows[owner * size : (owner + 1) * size], [])
        for owner in range(work.owners)
    ]


def operations(base: BaseModel, work: Workload) -> int:
    """Of one step; see `flops`."""
    return roofline.training_step(base, examples(base, work), work.length)


def peak_memory(base: str, work: Workload) -> int:
    """Bytes of a step above the loaded base model, on the CPU, in a process of its own.

    Raises:
        MeasurementFailed: it ended otherwise.
    """
    threads = torch.get_num_threads()
    command = [
        sys.executable,
        "-m",
        "foreword.research.bench.workload",
        "--base",
        base,
        "--threads",
        str(threads),
    ]
    for name, value in asdict(work).items():
        command += [f"--{name}", str(value)]
    return int(json.loads(memory.run(str(work), command, threads))["bytes"])


def _main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--threads", type=int, required=True)
    names = [field.name for field in fields(Workload)]
    for name in names:
        parser.add_argument(f"--{name}", type=int, required=True)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    base = BaseModel.load(given.base, dtype=torch.float32, device="cpu")
    work = Workload(**{name: getattr(given, name) for name in names})
    step = step_of(base, trainers(base, work))
    print(json.dumps({"bytes": above_the_base(base.model, step, STEPS_OF_MEMORY)}))


if __name__ == "__main__":
    _main()
