"""A training step: Foreword's and PEFT's on the same rows, in turns, beside the machine's own rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from foreword.base.base_model import BaseModel
from foreword.encoding import EncodedExample
from foreword.research.bench import roofline, room
from foreword.research.bench import roofline as flops
from foreword.research.bench.timing import Spread, Work, in_turns, spread
from foreword.training.loop import train_step
from foreword.training.settings import make_settings
from foreword.training.trainer import Trainer, build_trainer

RANDOM, BY_SOURCE = "random", "by source"
MACHINE = "machine"
FOREWORD, PACKED, PEFT = "Foreword", "Foreword, packed", "PEFT"


@dataclass(frozen=True)
class StepFigures:
    """One way on one kind of batch.

    Attributes:
        batch: how its rows are drawn, and how many: "random, 8".
        way: whose step it is.
        seconds: of a step.
        examples: a second.
        share: of the machine's rate of matrix products in the same round, on real tokens; None where
            sources are shared.
        faster: than PEFT with as many random examples, as a ratio of each round; None without PEFT.
    """

    batch: str
    way: str
    seconds: Spread
    examples: Spread
    share: Spread | None
    faster: Spread | None


def check(base: BaseModel, rows: Sequence[EncodedExample], sizes: Sequence[int], *, peft: bool) -> None:
    """See that the largest batch fits into this machine's memory.

    Raises:
        UsageError: it does not.
    """
    some = sorted(rows, key=lambda row: row.tokens)[: max(sizes)]
    needed = room.step(base, sum(row.tokens for row in some), sum(len(row.target_ids) for row in some))
    needed += room.packed_copies(base) + (room.weights(base) if peft else 0)
    room.check(needed, base.device, f"a step of {max(sizes)} examples")


def measure(
    base: BaseModel,
    rows: Sequence[EncodedExample],
    sizes: Sequence[int],
    *,
    length: int,
    rounds: int,
    peft_folder: str | None,
    on_round: Callable[[str, int], None] = lambda batch, number: None,
) -> list[StepFigures]:
    """All ways, for batches of each size.

    Args:
        peft_folder: where PEFT loads the base model from; None leaves PEFT out.
    """
    found = []
    for size in sizes:
        prefix_trainers = {
            (RANDOM, FOREWORD): _learner(base, rows, size, length),
        }
        ways: dict[str, Work] = {" / ".join(key): _ours(base, each) for key, each in prefix_trainers.items()}
        twin = _learner(base, rows, size, length)
        ways[MACHINE], operations = roofline.products(base.dtype, base.device)
        if peft_folder is not None:
            ways[PEFT] = _peft(peft_folder, twin, length)

        def told(number: int, size: int = size) -> None:
            on_round(f"{size} rows", number)

        turns = in_turns(ways, rounds, on_round=told)
        rates = [operations / each for each in turns.seconds[MACHINE]]
        work = [flops.training_step(base, _batch(twin, number), length) for number in range(rounds)]
        for batch, way in prefix_trainers:
            name = f"{batch} / {way}"
            seconds = turns.seconds[name]
            found.append(
                StepFigures(
                    batch=f"{batch}, {size}",
                    way=way,
                    seconds=turns.of(name),
                    examples=spread([size / each for each in seconds]),
                    share=_share(work, seconds, rates),
                    faster=None if peft_folder is None else turns.faster(name, PEFT),
                )
            )
        if peft_folder is not None:
            seconds = turns.seconds[PEFT]
            examples = spread([size / each for each in seconds])
            share = _share(work, seconds, rates)
            found.append(StepFigures(f"{RANDOM}, {size}", PEFT, turns.of(PEFT), examples, share, None))
    return found


def step_of(base: BaseModel, prefix_trainers: Sequence[Trainer]) -> Work:
    """A step of all of them in one pass of the base model; it raises TrainingDiverged."""

    def step(number: int) -> None:
        for report in train_step(base, prefix_trainers):
            if isinstance(report, Exception):
                raise report

    return step


def _share(work: Sequence[int], seconds: Sequence[float], rates: Sequence[float]) -> Spread:
    """Of the machine's rate in the same round."""
    rounds = zip(work, seconds, rates, strict=True)
    return spread([done / taken / rate for done, taken, rate in rounds])


def _learner(
    base: BaseModel,
    rows: Sequence[EncodedExample],
    size: int,
    length: int,
) -> Trainer:
    settings = make_settings(length=length, steps=1_000_000, batch_size=size)
    return build_trainer(base, settings, list(rows), [])


def _batch(prefix_trainer: Trainer, number: int) -> list[EncodedExample]:
    """The rows of a round: those of the learner's step after the one that warms up."""
    prefix_trainer.step = number + 1
    return prefix_trainer.batch()


def _ours(base: BaseModel, prefix_trainer: Trainer) -> Work:
    step = step_of(base, [prefix_trainer])

    def work(number: int) -> None:
        _batch(prefix_trainer, number)
        step(number)

    return work


def _peft(folder: str, twin: Trainer, length: int) -> Work:
    from foreword.research.bench import peft as peft_peer

    model = peft_peer.load(folder, length=length, projection=False)
    step = peft_peer.trainer(model, learning_rate=1e-3, warmup=0, steps=1_000_000)
    return lambda number: step(_batch(twin, number))
