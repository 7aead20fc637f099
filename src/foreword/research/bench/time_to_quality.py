"""Time to quality: after what part of PEFT's time Foreword's defaults reach the dev loss that PEFT ends with.

All runs take their steps in turns, each on the same examples in the same order and with the same warm-up,
decay and clipping; the time of a run is that of its own steps. PEFT runs in both its forms at several
learning rates, and the better one of each counts. Foreword's rate is its default, whatever the data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from foreword.base.base_model import BaseModel
from foreword.encoding import EncodedExample
from foreword.errors import UsageError
from foreword.research.bench import peft
from foreword.research.bench.train_step import step_of
from foreword.training.batch_sampler import BatchSampler
from foreword.training.loop import mean_loss
from foreword.training.settings import make_settings
from foreword.training.trainer import build_trainer

DIRECT, PROJECTED = "PEFT, direct", "PEFT, projection"
FOREWORD = "Foreword"


@dataclass
class Run:
    """One run in the race.

    Attributes:
        step: makes a step, of this number from 0.
        loss: its dev loss now.
        steps: how many it has.
        watched: steps between two looks at its dev loss; the last step is always looked at.
        seconds: of its steps so far.
        run_log: dev loss and seconds after so many steps.
    """

    step: Callable[[int], object]
    loss: Callable[[], float]
    steps: int
    watched: int
    seconds: float = 0.0
    run_log: dict[int, tuple[float, float]] = field(default_factory=dict)

    @property
    def end(self) -> tuple[float, float]:
        """Dev loss and seconds after the last step."""
        return self.run_log[self.steps]

    def reached(self, loss: float) -> tuple[int, float] | None:
        """Steps and seconds after which it was first seen at `loss` or below; None: never."""
        for steps, (own, seconds) in sorted(self.run_log.items()):
            if own <= loss:
                return steps, seconds
        return None


def race(
    runs: Mapping[str, Run],
    on_step: Callable[[int], None] = lambda number: None,
    wait: Callable[[], None] = lambda: None,
) -> None:
    """Let all runs take their steps in turns.

    Args:
        wait: see `timing.waiting_for`; called before the clock is read.
    """
    for number in range(max(run.steps for run in runs.values())):
        for run in runs.values():
            if number >= run.steps:
                continue
            start_time = time.perf_counter()
            run.step(number)
            wait()
            run.seconds += time.perf_counter() - start_time
            done = number + 1
            if done == run.steps or done % run.watched == 0:
                run.run_log[done] = (run.loss(), run.seconds)
        on_step(number + 1)


def entrants(
    base: BaseModel,
    rows: Sequence[EncodedExample],
    dev: Sequence[EncodedExample],
    *,
    length: int,
    size: int,
    steps: int,
    own_steps: int,
    watched: int,
    rates: Mapping[str, Sequence[float]],
    peft_folder: str,
) -> dict[str, Run]:
    """Foreword's run, and one of PEFT for each form and learning rate.

    Args:
        steps, own_steps: of PEFT's runs and of Foreword's.
        watched: steps between two looks at Foreword's dev loss.
        rates: learning rates of `DIRECT` and of `PROJECTED`.

    Raises:
        UsageError: fewer examples than a batch has.
    """
    if len(rows) < size or not dev:
        raise UsageError(f"{len(rows)} examples and {len(dev)} dev examples; expected {size} and 1 at least")
    settings = make_settings(length=length, steps=own_steps, batch_size=size)
    own = build_trainer(base, settings, list(rows), list(dev))
    runs = {
        FOREWORD: Run(step_of(base, [own]), lambda: mean_loss(base, own.trained, own.dev), own_steps, watched)
    }
    warmup = make_settings().warmup_steps(steps)
    order = BatchSampler([row.tokens for row in rows], size, settings.seed, by_length=False)
    for form, tried in rates.items():
        for rate in tried:
            model = peft.load(peft_folder, length=length, projection=form == PROJECTED, like=base)
            take_step = peft.trainer(model, learning_rate=rate, warmup=warmup, steps=steps)

            def step(number: int, take_step: Callable[[Sequence[EncodedExample]], float] = take_step) -> None:
                take_step([rows[index] for index in order.batch(number)])

            def loss(model: object = model) -> float:
                return peft.dev_loss(model, dev)

            runs[f"{form}, {rate:g}"] = Run(step, loss, steps, watched=steps)
    return runs


def best(runs: Mapping[str, Run], form: str) -> str:
    """The name of the run of a form that ended lowest."""
    return min((name for name in runs if name.startswith(f"{form},")), key=lambda name: runs[name].end[0])
