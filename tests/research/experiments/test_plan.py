"""Plans: what is wrong with one is said at once; what grows leaves what is made as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from foreword import BaseModel
from foreword.errors import UsageError
from foreword.research.baselines.protocol import Adapter, AdapterInputs
from foreword.research.baselines.registry import METHODS, Method
from foreword.research.experiments.plan import Plan
from foreword.research.experiments.results import Results
from foreword.research.experiments.trials import run, settings_of
from support.trials import small_plan, small_splits


def test_bad_plans_are_refused() -> None:
    for changes, message in (
        ({"subsets": 0}, "subsets is 0"),
        ({"methods": ()}, "no methods; give at least one"),
        ({"sizes": ()}, "no sizes"),
        ({"sizes": (0,)}, "size 0 is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_length": 0}, "max_length is 0; expected 1 or more"),
    ):
        with pytest.raises(UsageError, match=message):
            small_plan(**changes)


def seeds_of(base: BaseModel, plan: Plan, folder: Path) -> tuple[Results, dict[tuple[str, ...], int]]:
    """The results of the plan's run, and the seed of every training in it, by training examples."""
    seen: dict[Any, int] = {}
    splits = small_splits()

    def recording(method: Method) -> Method:
        def begin(inputs: AdapterInputs) -> Adapter:
            subset = tuple(example.source for example in inputs.examples)
            seen[method.name, subset, inputs.seed] = inputs.seed
            return method.begin(inputs)

        return Method(method.name, method.title, begin, method.grid, method.default, method.trains)

    recorded = Plan(**{**vars(plan), "methods": tuple(map(recording, plan.methods))})
    results = Results(folder, "low-data", settings_of(base, splits, recorded))
    run(base, splits, recorded, results, folder, lambda *_: None)
    return results, seen


def test_trials_of_a_run_that_grew_are_those_of_a_run_that_was_large_at_once(
    tiny_base: BaseModel, tmp_path: Path
) -> None:
    prefix, lora = METHODS["prefix"], METHODS["lora"]
    small, seeds = seeds_of(tiny_base, small_plan(methods=(prefix,), sizes=(4,)), tmp_path / "grown")
    assert sorted(seeds.values()) == [0, 1]
    large = small_plan(methods=(prefix, lora), sizes=(4,), seeds=2)
    grown, _ = seeds_of(tiny_base, large, tmp_path / "grown")
    at_once, seeds = seeds_of(tiny_base, large, tmp_path / "at once")
    assert len(small.records) == 2
    assert len(grown.records) == len(at_once.records) == 8
    for name, piece in at_once.records.items():
        assert grown.records[name]["figures"] == piece["figures"], name
    for name in ("prefix", "lora"):  # on the same subset with the same seed, and all seeds apart
        own = {(subset, seed) for method, subset, seed in seeds if method == name}
        assert own == {(subset, seed) for _, subset, seed in seeds}
        assert len({seed for _, seed in own}) == 4
