"""A training step: Foreword's and PEFT's on the same rows, in turns, beside the machine's own rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from foreword.base.base_model import BaseModel
from foreword.encoding import EncodedExample
from foreword.research.bench import roofline
from foreword.research.bench.timing import Work, in_turns, spread, waiting_for
from foreword.training.loop import train_step
from foreword.training.settings import make_settings
from foreword.training.trainer import Trainer, build_trainer

MACHINE, FOREWORD, PEFT = "machine", "Foreword", "PEFT"

COLUMNS = ("batch", "way", "seconds", "examples/s", "share of the machine's rate", "times PEFT")
"""Of a row of figures: how the batch is drawn and how many rows it has ("random, 8"), whose step it is,
seconds of a step, examples a second, share of the machine's rate of matrix products in the same round, on
real tokens, the speed over PEFT's on the same rows, as a ratio of each round (None for PEFT's own and without
PEFT)."""


def measure(
    base: BaseModel,
    rows: Sequence[EncodedExample],
    size: int,
    *,
    length: int,
    rounds: int,
    peft_folder: str | None,
    on_round: Callable[[int], None],
) -> list[tuple[Any, ...]]:
    """A row of figures (`COLUMNS`) of each way, for batches of `size` rows.

    Args:
        peft_folder: where PEFT loads the base model from; None leaves PEFT out.
    """
    settings = make_settings(length=length, steps=1_000_000, batch_size=size)
    ours, twin = (build_trainer(base, settings, list(rows), []) for _ in range(2))
    step = step_of(base, [ours])

    def own_step(number: int) -> None:
        batch_at(ours, number + 1)
        step(number)

    # The rows of a round are those of the step after the one that warms up.
    ways: dict[str, Work] = {FOREWORD: own_step}
    ways[MACHINE], operations = roofline.products(base.dtype, base.device)
    if peft_folder is not None:
        from foreword.research.bench import peft as peft_peer

        model = peft_peer.load(peft_folder, length=length, projection=False, like=base)
        peft_step = peft_peer.trainer(model, learning_rate=1e-3, warmup=0, steps=1_000_000)
        ways[PEFT] = lambda number: peft_step(batch_at(twin, number + 1))
    turns = in_turns(ways, rounds, wait=waiting_for(base.device), on_round=on_round)
    rates = [operations / each for each in turns.seconds[MACHINE]]
    work = [roofline.training_step(base, batch_at(twin, number + 1), length) for number in range(rounds)]
    figures = []
    for way in (FOREWORD, PEFT)[: 1 if peft_folder is None else 2]:
        seconds = turns.seconds[way]
        shares = [done / taken / rate for done, taken, rate in zip(work, seconds, rates, strict=True)]
        examples = spread([size / each for each in seconds])
        faster = turns.faster(way, PEFT) if way == FOREWORD and peft_folder is not None else None
        figures.append((f"random, {size}", way, turns.of(way), examples, spread(shares), faster))
    return figures


def step_of(base: BaseModel, trainers: Sequence[Trainer]) -> Work:
    """A step of all of them in one pass of the base model; it raises TrainingDiverged."""

    def step(number: int) -> None:
        for report in train_step(base, trainers):
            if isinstance(report, Exception):
                raise report

    return step


def batch_at(trainer: Trainer, step: int) -> list[EncodedExample]:
    """The rows of a step of the trainer, which stands there afterwards."""
    trainer.step = step
    return trainer.batch()
