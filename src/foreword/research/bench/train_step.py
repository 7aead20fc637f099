"""A training step: Foreword's and PEFT's on the same rows, in turns, beside the machine's own rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from foreword.base.base_model import BaseModel
from foreword.encoding import EncodedExample
from foreword.research.bench import roofline
from foreword.research.bench.timing import Spread, Work, in_turns, spread
from foreword.training.loop import train_step
from foreword.training.settings import make_settings
from foreword.training.trainer import Trainer, build_trainer

MACHINE, FOREWORD, PEFT = "machine", "Foreword", "PEFT"


@dataclass(frozen=True)
class StepFigures:
    """One way on one kind of batch.

    Attributes:
        batch: how its rows are drawn, and how many: "random, 8".
        way: whose step it is.
        seconds: of a step.
        examples: a second.
        share: of the machine's rate of matrix products in the same round, on real tokens.
        faster: than PEFT on the same rows, as a ratio of each round; None for PEFT's own and without PEFT.
    """

    batch: str
    way: str
    seconds: Spread
    examples: Spread
    share: Spread
    faster: Spread | None


def measure(
    base: BaseModel,
    rows: Sequence[EncodedExample],
    size: int,
    *,
    length: int,
    rounds: int,
    peft_folder: str | None,
    on_round: Callable[[int], None] = lambda number: None,
) -> list[StepFigures]:
    """All ways, for batches of `size` rows.

    Args:
        peft_folder: where PEFT loads the base model from; None leaves PEFT out.
    """
    ours, twin = (_trainer(base, rows, size, length) for _ in range(2))
    ways: dict[str, Work] = {FOREWORD: _ours(base, ours)}
    ways[MACHINE], operations = roofline.products(base.dtype, base.device)
    if peft_folder is not None:
        ways[PEFT] = _peft(peft_folder, twin, length)
    turns = in_turns(ways, rounds, on_round=on_round)
    rates = [operations / each for each in turns.seconds[MACHINE]]
    work = [roofline.training_step(base, _batch(twin, number), length) for number in range(rounds)]
    figures = []
    for way in (FOREWORD, PEFT)[: 1 if peft_folder is None else 2]:
        seconds = turns.seconds[way]
        shares = [done / taken / rate for done, taken, rate in zip(work, seconds, rates, strict=True)]
        figures.append(
            StepFigures(
                batch=f"random, {size}",
                way=way,
                seconds=turns.of(way),
                examples=spread([size / each for each in seconds]),
                share=spread(shares),
                faster=turns.faster(way, PEFT) if way == FOREWORD and peft_folder is not None else None,
            )
        )
    return figures


def step_of(base: BaseModel, trainers: Sequence[Trainer]) -> Work:
    """A step of all of them in one pass of the base model; it raises TrainingDiverged."""

    def step(number: int) -> None:
        for report in train_step(base, trainers):
            if isinstance(report, Exception):
                raise report

    return step


def _trainer(base: BaseModel, rows: Sequence[EncodedExample], size: int, length: int) -> Trainer:
    settings = make_settings(length=length, steps=1_000_000, batch_size=size)
    return build_trainer(base, settings, list(rows), [])


def _batch(trainer: Trainer, number: int) -> list[EncodedExample]:
    """The rows of a round: those of the trainer's step after the one that warms up."""
    trainer.step = number + 1
    return trainer.batch()


def _ours(base: BaseModel, trainer: Trainer) -> Work:
    step = step_of(base, [trainer])

    def work(number: int) -> None:
        _batch(trainer, number)
        step(number)

    return work


def _peft(folder: str, twin: Trainer, length: int) -> Work:
    from foreword.research.bench import peft as peft_peer

    model = peft_peer.load(folder, length=length, projection=False)
    step = peft_peer.trainer(model, learning_rate=1e-3, warmup=0, steps=1_000_000)
    return lambda number: step(_batch(twin, number))
