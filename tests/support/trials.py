"""Small experiments with methods, for tests."""

from __future__ import annotations

from typing import Any

from foreword.examples import entries_of
from foreword.research.baselines.registry import methods_named
from foreword.research.experiments.plan import Plan
from foreword.research.experiments.splits import DataSplits
from support.stand_ins import random_examples


def small_splits() -> DataSplits:
    measured = entries_of(random_examples(4, seed=2))
    return DataSplits(random_examples(30), random_examples(5, seed=1), {"measured": measured})


def small_plan(**changes: Any) -> Plan:
    given = {
        "methods": tuple(methods_named(["prefix", "lora"])),
        "sizes": (4, 8),
        "subsets": 2,
        "tuning_size": 6,
        "tuned": False,
        "length": 2,
        "steps": 4,
        "batch_size": 2,
        "max_length": 100,
        "instruction": "Say it.",
        "decoding": {"max_new_tokens": 5},
    }
    return Plan(**{**given, **changes})
