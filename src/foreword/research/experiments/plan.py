"""Plan: methods by sizes of training data by subsets by seeds, and the trials that come of it."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from foreword.errors import UsageError
from foreword.research.baselines.registry import RATE, Choice, Method
from foreword.training.settings import TrainingSettings, make_settings

TUNING = "tuning"
"""Name of the subset that learning rates are chosen on; no trial uses it."""

SEEDS_APART = 1000
"""Between one seed of a subset and its next: whatever grows, a trial that is made keeps its own. Fewer
subsets than that have no seed in common."""

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Plan:
    """What shall be tried. Methods, sizes and repetitions may grow from one start to the next.

    Attributes:
        methods: at every size.
        others: at `tuning_size` alone.
        sizes: numbers of training examples.
        subsets, seeds: for each size, so many subsets, each with so many seeds.
        tuning_size: training examples on which learning rates are chosen; `tuned` false: the defaults.
        length: P of all methods that have virtual tokens.
        steps, batch_size, patience: of training; `epochs` instead of steps, where it is given.
        seed: of subsets, beginnings and order.
        max_length: most tokens of an example; longer ones are cut as in training.
        instruction: for methods that prompt.
        decoding: keywords of `generate`.
    """

    methods: tuple[Method, ...]
    sizes: tuple[int, ...]
    others: tuple[Method, ...] = ()
    subsets: int = 3
    seeds: int = 1
    tuning_size: int = 100
    tuned: bool = True
    length: int = 10
    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 8
    patience: int | None = None
    seed: int = 0
    max_length: int = 512
    instruction: str = ""
    decoding: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = ("subsets", "seeds", "tuning_size", "max_length")
        counts = {name: getattr(self, name) for name in names}
        counts |= {f"size {size}": size for size in self.sizes}
        for name, count in counts.items():
            if count < 1:
                raise UsageError(f"{name} is {count}; expected 1 or more")
        if not self.methods:
            raise UsageError("no methods; give at least one that is tried at every size")
        if not self.sizes:
            raise UsageError("no sizes; give at least one number of training examples")
        self.training({}, self.seed)

    def training(self, choice: Choice, seed: int) -> TrainingSettings:
        """Settings of one training."""
        return make_settings(
            length=self.length,
            steps=self.steps,
            epochs=self.epochs,
            batch_size=self.batch_size,
            patience=self.patience,
            seed=seed,
            learning_rate=choice.get(RATE),
        )

    def trials(self) -> Iterator[Trial]:
        """All of them, in the order in which they are made: whole tables as early as possible."""
        repetitions = list(itertools.product(range(self.subsets), range(self.seeds)))
        of_methods = itertools.product(repetitions, self.sizes, self.methods)
        of_others = itertools.product(self.others, repetitions)
        planned = [(method, size, *repetition) for repetition, size, method in of_methods]
        planned += [(method, self.tuning_size, *repetition) for method, repetition in of_others]
        for each in planned:
            if (trial := Trial(*each)) == Trial.of(*each):
                yield trial


@dataclass(frozen=True)
class Trial:
    """One method on one subset with one seed."""

    method: Method
    size: int
    subset: int
    seed: int

    @classmethod
    def of(cls, method: Method, size: int, subset: int, seed: int) -> Trial:
        """The trial that stands for a repetition: of a method that sees no training examples, the first."""
        return cls(method, size, subset, seed) if method.sees_training else cls(method, size, 0, 0)

    @property
    def key(self) -> str:
        """Its name in the results."""
        return f"{self.method.name}, n = {self.size}, subset {self.subset}, seed {self.seed}"

    @property
    def outputs(self) -> str:
        """Name of the file with its texts."""
        return outputs_of(self.key)


def outputs_of(key: str) -> str:
    """Name of the file with the texts of a trial, by its name in the results."""
    return re.sub(r"[^a-z0-9-]+", "_", key.lower()) + ".jsonl"


def method_of(key: str) -> str | None:
    """The method of a trial, by its name in the results; None for what is no trial."""
    match = re.fullmatch(r"([^ ,]+), n = \d+, subset \d+, seed \d+", key)
    return match and match[1]


def seconds_since(start_time: float) -> float:
    """Seconds of a part that began at this time of `time.perf_counter`, as the results have them."""
    return round(time.perf_counter() - start_time, 1)
