"""Scaling: how the cost of work grows with one size while the others stay, and what its operations say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from foreword.base.base_model import BaseModel
from foreword.errors import UsageError
from foreword.research.bench import memory as peaks
from foreword.research.bench import roofline, workload
from foreword.research.bench.generation import batch_of, prompts_of, work_of
from foreword.research.bench.timing import Spread, Work, in_turns, spread, waiting_for
from foreword.research.bench.train_step import step_of
from foreword.research.bench.workload import Workload

MACHINE = "machine"
ROWS_OF_OWNERS, ROWS_OF_PREFIXES = 16, 32
SHORT, LONG = 64, 512
"""Tokens of a row: as E2E's, and as a page's."""


@dataclass(frozen=True)
class Axis:
    """What grows (in the plural), what the other sizes are meanwhile, and its values, rising."""

    grows: str
    stays: str
    points: tuple[int, ...]


AXES: Mapping[str, Axis] = {
    "length": Axis("virtual tokens", f"a step of 1 row of {LONG} tokens", (1, 16, 64, 256, 512, 1024, 2048)),
    "batch": Axis("rows", f"a step, {SHORT} tokens a row, P = 10", (1, 2, 4, 8, 16, 32)),
    "text": Axis("tokens of the row", "a step of 1 row, P = 10", (32, 64, 128, 256, 512, 1024, 2048)),
    "owners": Axis(
        "owners", f"a step of {ROWS_OF_OWNERS} rows of {SHORT} tokens in all, P = 10", (1, 2, 4, 8, 16)
    ),
    "prefixes": Axis(
        "distinct prefixes", f"generating for {ROWS_OF_PREFIXES} rows, P = 10", (1, 2, 4, 8, 16, 32)
    ),
}
"""Curves by name."""

NEW_TOKENS = 16
"""Of each row, where text is generated."""

COLUMNS = ("curve", "at", "seconds", "growth", "growth of operations", "share", "peak MB")


class CurvePoint(NamedTuple):
    """One size of a curve, a row of the report (`COLUMNS`).

    Attributes:
        seconds: of the work.
        growth: seconds over those of the curve's first point in the same round.
        operations_growth: the same of the operations: what growth would be if nothing else cost time.
        share: of the machine's rate of matrix products in the same round.
        megabytes: at the peak, above the loaded base; None where it was not measured.
    """

    curve: str
    at: int
    seconds: Spread
    growth: Spread
    operations_growth: float
    share: Spread
    megabytes: float | None


def check(base: BaseModel, name: str, points: Sequence[int]) -> None:
    """See that every point can be measured here, before any is.

    Raises:
        UsageError: points that don't rise, that the rows don't divide into, or that the base has no positions
            for.
        WindowExceeded: a prefix that leaves the base no position.
    """
    if list(points) != sorted(set(points)) or len(points) < 2:
        raise UsageError(
            f"the points of {name} are {','.join(map(str, points))}; expected two or more, rising"
        )
    if name == "prefixes":
        if points[-1] > ROWS_OF_PREFIXES:
            raise UsageError(
                f"{points[-1]} distinct prefixes are more than the batch's {ROWS_OF_PREFIXES} rows"
            )
        return
    for at in points:
        work = sizes(name, at)
        if work.rows % work.owners:
            raise UsageError(f"{work.rows} rows don't divide among {at} owners; take 1, 2, 4, 8 or 16")
        limit = base.max_text_tokens(work.length)
        if limit is not None and work.text >= limit:
            raise UsageError(
                f"{name} at {at}: rows of {work.text} tokens don't fit into the {base.max_positions} "
                f"positions of {base.name} behind {work.length} virtual tokens; take smaller points"
            )


def measure(
    base: BaseModel,
    name: str,
    points: Sequence[int],
    *,
    rounds: int,
    memory: bool,
    on_round: Callable[[int], None],
) -> list[CurvePoint]:
    """All points of a curve, in turns.

    Args:
        memory: measure the peak of each, in a process of its own, too (not of generation).
    """
    ways: dict[str, Work] = {}
    work: dict[int, int] = {}
    for at in points:
        if name == "prefixes":
            prompts = prompts_of(ROWS_OF_PREFIXES)
            ways[str(at)] = batch_of(base, prompts, length=10, new_tokens=NEW_TOKENS, distinct=at)
            work[at] = work_of(base, prompts, 10, NEW_TOKENS)
        else:
            ways[str(at)] = step_of(base, workload.trainers(base, sizes(name, at)))
            work[at] = workload.operations(base, sizes(name, at))
    ways[MACHINE], operations = roofline.products(base.dtype, base.device, count=3)
    turns = in_turns(ways, rounds, wait=waiting_for(base.device), on_round=on_round)
    rates = [operations / each for each in turns.seconds[MACHINE]]
    first = points[0]
    curve = []
    for at in points:
        taken = zip(turns.seconds[str(at)], rates, strict=True)
        share = spread([work[at] / seconds / rate for seconds, rate in taken])
        growth = turns.faster(str(first), than=str(at))
        peak = peaks.of_workload(base, sizes(name, at)) / 1e6 if memory and name != "prefixes" else None
        curve.append(CurvePoint(name, at, turns.of(str(at)), growth, work[at] / work[first], share, peak))
    return curve


def sizes(name: str, at: int) -> Workload:
    """The step of a curve at one of its points."""
    if name == "length":
        return Workload(rows=1, text=LONG, length=at)
    if name == "batch":
        return Workload(rows=at, text=SHORT, length=10)
    if name == "text":
        return Workload(rows=1, text=at, length=10)
    return Workload(rows=ROWS_OF_OWNERS, text=SHORT, length=10, owners=at)


def in_words(curve: Sequence[CurvePoint]) -> str:
    """The slope, as a sentence."""
    axis, first, last = AXES[curve[0].curve], curve[0], curve[-1]
    sentence = (
        f"From {first.at} to {last.at} {axis.grows} ({axis.stays}) the time grows {last.growth} times, the "
        f"operations {last.operations_growth:.2f} times"
    )
    if first.megabytes is not None and last.megabytes is not None:
        each = (last.megabytes - first.megabytes) / (last.at - first.at)
        sentence += f", the peak of memory from {first.megabytes:.0f} to {last.megabytes:.0f} MB"
        sentence += f", {each:.2f} MB for each more"
    return sentence + "."
