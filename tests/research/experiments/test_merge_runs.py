"""A run that several processes made in folders of their own, put together."""

from __future__ import annotations

from pathlib import Path

import pytest

from foreword import BaseModel
from foreword.errors import CannotRead, CheckpointMismatch, OutputInUse, UsageError
from foreword.research.baselines.registry import methods_named
from foreword.research.experiments.plan import Plan, method_of
from foreword.research.experiments.results import Results, alone, take_over
from foreword.research.experiments.trials import run, settings_of
from support.trials import small_plan, small_splits


def plan_of(*names: str) -> Plan:
    return small_plan(methods=tuple(methods_named(names)), sizes=(4,))


def do(base: BaseModel, plan: Plan, folder: Path) -> Results:
    results = Results(folder, "low-data", settings_of(base, small_splits(), plan))
    results.begin_session(command=f"in {folder.name}")
    run(base, small_splits(), plan, results, folder, lambda *_: None)
    return results


def test_what_two_processes_made_is_what_one_makes(tiny_base: BaseModel, tmp_path: Path) -> None:
    whole = do(tiny_base, plan_of("prefix", "none"), tmp_path / "whole")
    ours = do(tiny_base, plan_of("prefix"), tmp_path / "ours")
    theirs = do(tiny_base, plan_of("none"), tmp_path / "theirs")
    before = theirs.path.read_bytes()
    assert take_over(ours, tmp_path / "theirs") == len(theirs.records) == 1
    assert {name: piece.get("figures") for name, piece in ours.records.items()} == {
        name: piece.get("figures") for name, piece in whole.records.items()
    }
    assert [session["command"] for session in ours.sessions] == ["in ours", "in theirs"]
    again = Results(tmp_path / "ours", "low-data", ours.settings)
    assert (again.records, again.sessions) == (ours.records, ours.sessions)
    names = sorted(path.name for path in (tmp_path / "whole" / "outputs").iterdir())
    for name in names:
        texts = (tmp_path / "ours" / "outputs" / name).read_bytes()
        assert texts == (tmp_path / "whole" / "outputs" / name).read_bytes()
    assert take_over(ours, tmp_path / "theirs") == 0
    assert len(ours.sessions) == 2
    assert theirs.path.read_bytes() == before


def test_what_does_not_belong_together_is_refused_and_nothing_is_taken(
    tiny_base: BaseModel, tmp_path: Path
) -> None:
    ours = do(tiny_base, plan_of("prefix"), tmp_path / "ours")
    kept = ours.path.read_bytes()
    other = small_plan(methods=tuple(methods_named(["none"])), sizes=(4,), steps=5)
    do(tiny_base, other, tmp_path / "other")
    with pytest.raises(CheckpointMismatch, match="steps is 4, was 5"):
        take_over(ours, tmp_path / "other")
    with pytest.raises(CannotRead, match=r"nothing has no results\.jsonl"):
        take_over(ours, tmp_path / "nothing")
    with pytest.raises(UsageError, match="is the folder of the run itself"):
        take_over(ours, tmp_path / "ours")
    theirs = do(tiny_base, plan_of("none"), tmp_path / "theirs")
    with alone(tmp_path / "theirs"), pytest.raises(OutputInUse):
        take_over(ours, tmp_path / "theirs")
    theirs.add("prefix, n = 9, subset 0, seed 0", choice={"learning_rate": 0.9}, diverged=True)
    with pytest.raises(CheckpointMismatch, match=r"prefix was tried with learning rate 0\.9 in .*theirs"):
        take_over(ours, tmp_path / "theirs")
    assert ours.path.read_bytes() == kept


def test_a_trial_whose_texts_are_gone_is_not_taken(tiny_base: BaseModel, tmp_path: Path) -> None:
    ours = do(tiny_base, plan_of("prefix"), tmp_path / "ours")
    kept = ours.path.read_bytes()
    do(tiny_base, plan_of("none"), tmp_path / "theirs")
    (tmp_path / "theirs" / "outputs" / "none_n_4_subset_0_seed_0.jsonl").unlink()
    with pytest.raises(CannotRead, match="its trial is in the results"):
        take_over(ours, tmp_path / "theirs")
    assert ours.path.read_bytes() == kept


def test_the_method_of_a_trial_is_in_its_name() -> None:
    assert method_of("mlp+start, n = 50, subset 1, seed 0") == "mlp+start"
    assert method_of("e2e figures of prefix, n = 50, subset 1, seed 0") is None
    assert method_of("grid of prefix: learning rate 0.05") is None
