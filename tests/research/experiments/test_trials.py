"""Trials on a tiny model: what is measured, how rates are chosen, that it goes on where it was stopped."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from foreword import BaseModel, generate, train
from foreword.errors import CheckpointMismatch
from foreword.evaluation import text_scores, token_loss
from foreword.examples import examples_of
from foreword.research.baselines.protocol import Adapter, AdapterInputs
from foreword.research.baselines.registry import METHODS, MOST_TRIED, RATE, Method, methods_named, rates
from foreword.research.experiments import statistics
from foreword.research.experiments.measure import measure
from foreword.research.experiments.plan import TUNING, Plan, Trial
from foreword.research.experiments.report_trials import make_report
from foreword.research.experiments.results import Results, choice_key
from foreword.research.experiments.trials import choose, run, settings_of
from support.trials import small_plan, small_splits


def open_results(base: BaseModel, plan: Plan, folder: Path) -> Results:
    return Results(folder, "low-data", settings_of(base, small_splits(), plan))


def do(base: BaseModel, plan: Plan, folder: Path, **more: Any) -> Results:
    results = open_results(base, plan, folder)
    run(base, small_splits(), plan, results, folder, lambda *_: None, **more)
    return results


def untimed(results: Results) -> dict[str, Any]:
    return {
        name: {key: value for key, value in piece.items() if "seconds" not in key}
        for name, piece in results.records.items()
    }


def test_a_trial_is_what_train_and_evaluate_give(tiny_base: BaseModel, tmp_path: Path) -> None:
    plan, splits = small_plan(), small_splits()
    results = do(tiny_base, plan, tmp_path)
    found = results.records["prefix, n = 8, subset 1, seed 0"]
    prefix = train(
        tiny_base,
        splits.subset(8, 0, "1"),
        dev=splits.dev,
        length=2,
        steps=4,
        batch_size=2,
        learning_rate=0.05,
        seed=1,
    )
    measured = splits.measured["measured"]
    texts = [t.strip() for t in generate(tiny_base, [e.source for e in measured], prefix, max_new_tokens=5)]
    expected = text_scores(texts, [entry.references for entry in measured])
    assert found["dev_loss"] == pytest.approx(prefix.origin.dev_loss, rel=1e-5)
    assert found["step"] == prefix.origin.steps
    figures = found["figures"]["measured"]
    loss = token_loss(tiny_base, examples_of(measured), prefix).mean
    assert figures["loss"] == pytest.approx(loss, rel=1e-5)
    assert (figures["BLEU"], figures["chrF"]) == pytest.approx((expected.bleu, expected.chrf))
    lines = (tmp_path / "outputs" / "prefix_n_8_subset_1_seed_0.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == texts
    assert [json.loads(line)["references"] for line in lines] == [[*entry.references] for entry in measured]


def test_others_are_tried_at_the_tuning_size_alone() -> None:
    plan = small_plan(others=tuple(methods_named(["none", "adapter"])), seeds=2)
    found = list(plan.trials())
    assert len(found) == len({trial.key for trial in found}) == 2 * 2 * 2 * 2 + 1 + 2 * 2
    assert {trial.size for trial in found if trial.method.name in ("none", "adapter")} == {6}
    assert found[:2] == [Trial(method, 4, 0, 0) for method in plan.methods]


def test_a_stopped_run_does_what_is_left_and_ends_in_the_same_figures(
    tiny_base: BaseModel, tmp_path: Path
) -> None:
    plan = small_plan(tuned=True)
    expected = untimed(do(tiny_base, plan, tmp_path / "whole"))
    made: list[int] = []

    def stop() -> None:
        made.append(1)
        if len(made) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        do(tiny_base, plan, tmp_path / "stopped", on_trial=stop)
    made.clear()
    again = do(tiny_base, plan, tmp_path / "stopped", on_trial=lambda: made.append(1))
    assert len(made) == 8 - 3
    assert untimed(again) == expected


def test_a_run_may_grow_but_not_change(tiny_base: BaseModel, tmp_path: Path) -> None:
    do(tiny_base, small_plan(subsets=1), tmp_path)
    made: list[int] = []
    grown = small_plan(methods=tuple(methods_named(["prefix", "lora", "none"])))
    do(tiny_base, grown, tmp_path, on_trial=lambda: made.append(1))
    assert len(made) == 2 * 2 * 2 - 2 * 2 + 2
    with pytest.raises(CheckpointMismatch, match="steps is 5, was 4"):
        do(tiny_base, small_plan(steps=5), tmp_path)
    with pytest.raises(CheckpointMismatch, match="decoding is .*6.*, was .*5"):
        do(tiny_base, small_plan(decoding={"max_new_tokens": 6}), tmp_path)
    with pytest.raises(CheckpointMismatch, match="rates chosen at is 6, was 'not chosen'"):
        do(tiny_base, small_plan(tuned=True), tmp_path)


def test_the_choice_with_the_lowest_dev_loss_is_kept_for_all_sizes(
    tiny_base: BaseModel, tmp_path: Path
) -> None:
    plan = small_plan(tuned=True, methods=(few(METHODS["prefix"], 0.001, 0.3, 0.0001),))
    results = do(tiny_base, plan, tmp_path)
    losses = {piece["choice"][RATE]: piece["dev_loss"] for piece in grid(results).values()}
    splits = small_splits()
    apart = splits.subset(6, 0, TUNING)
    options = {"length": 2, "steps": 4, "batch_size": 2, "learning_rate": 0.3}
    alone = train(tiny_base, apart, dev=splits.dev, **options)
    assert losses[0.3] == pytest.approx(alone.origin.dev_loss, rel=1e-5)
    best = min(losses, key=lambda rate: losses[rate])
    chosen = [piece["choice"][RATE] for name, piece in results.records.items() if "subset" in name]
    assert chosen == [best] * 4


def few(method: Method, *values: float) -> Method:
    return Method(method.name, method.title, method.begin, rates(*values), {RATE: values[0]}, method.trains)


def grid(results: Results) -> dict[str, Any]:
    return {name: piece for name, piece in results.records.items() if name.startswith("grid of")}


def test_a_grid_is_made_wider_while_the_best_rate_is_at_its_edge(
    tiny_base: BaseModel, tmp_path: Path
) -> None:
    method = few(METHODS["prefix"], 1e-5, 1e-4)
    plan = small_plan(tuned=True, methods=(method,))
    results = open_results(tiny_base, plan, tmp_path)
    chosen = choose(tiny_base, method, small_splits(), plan, results, lambda *_: None)
    assert [piece["choice"][RATE] for piece in grid(results).values()] == [1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0]
    assert chosen[RATE] in (0.1, 1.0)
    before = dict(results.records)
    assert choose(tiny_base, method, small_splits(), plan, results, lambda *_: None) == chosen
    assert results.records == before


def test_the_rate_beyond_an_edge() -> None:
    method = METHODS["prefix"]
    assert method.wider({0.02: 1.0, 0.05: 2.0, 0.1: 3.0}) == {RATE: 0.008}
    assert method.wider({0.02: 3.0, 0.05: 2.0, 0.1: 1.0}) == {RATE: 0.2}
    assert method.wider({0.02: 3.0, 0.05: 1.0, 0.1: 2.0}) is None


def test_a_rate_that_diverges_is_not_chosen_and_a_trial_that_diverges_is_noted(
    tiny_base: BaseModel, tmp_path: Path
) -> None:
    method = few(METHODS["fine-tuning"], 1e-4, 1e-3, 1e35)
    plan = small_plan(tuned=True, methods=(method,), sizes=(4,), subsets=1)
    results = do(tiny_base, plan, tmp_path)
    assert results.records[choice_key(method, {RATE: 1e35})]["dev_loss"] is None
    assert results.records["fine-tuning, n = 4, subset 0, seed 0"]["choice"][RATE] < 1
    wild = few(METHODS["fine-tuning"], 1e35)
    untuned = small_plan(methods=(wild,), sizes=(4,), subsets=1)
    results = do(tiny_base, untuned, tmp_path / "wild")
    assert statistics.cell(results, untuned, wild, 4, "measured", "BLEU") == statistics.Cell((), 1, 1)
    all_wild = few(METHODS["fine-tuning"], 1e34, 1e35, 1e36)
    plan = small_plan(tuned=True, methods=(all_wild,), sizes=(4,), subsets=1)
    results = do(tiny_base, plan, tmp_path / "all")
    assert len(grid(results)) == MOST_TRIED
    assert statistics.cell(results, plan, all_wild, 4, "measured", "BLEU") == statistics.Cell((), 1, 1)
    do(tiny_base, plan, tmp_path / "all", on_trial=lambda: pytest.fail("it was made before"))


def test_losing_trials_count_against_the_first_method(tmp_path: Path) -> None:
    plan = small_plan()
    results = Results(tmp_path, "low-data", {})
    for trial in plan.trials():
        ahead = trial.subset == 0 or trial.method.name == "lora"
        results.add(trial.key, figures={"measured": {"BLEU": 10.0 + ahead, "loss": 2.0 - ahead}})
    prefix, lora = plan.methods
    for metric in ("BLEU", "loss"):
        found = statistics.paired_comparison(results, plan, prefix, lora, "measured", metric)
        assert found is not None
        assert (found.mean, found.better, found.worse, found.ties) == (-0.5, 0, 2, 2)
    assert statistics.cell(results, plan, prefix, 4, "measured", "BLEU").values == (11.0, 10.0)
    assert TUNING not in {str(trial.subset) for trial in plan.trials()}


def test_losses_that_are_not_finite_are_noted_and_end_no_run(
    tiny_base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(inputs: AdapterInputs) -> Adapter:
        adapter = METHODS["prefix"].begin(inputs)
        losses, passes = adapter.losses, []

        def first_without(rows: Any) -> torch.Tensor:
            passes.append(1)
            return losses(rows) * (math.nan if len(passes) == 1 else 1)

        adapter.losses = first_without  # type: ignore[method-assign]
        return adapter

    def without_a_loss(*arguments: Any) -> Any:
        figures, predictions = measure(*arguments)
        return {**figures, "loss": math.inf}, predictions

    wild = Method("wild", "wild", begin, rates(0.05), {RATE: 0.05})
    plan = small_plan(methods=(wild,), sizes=(4,), subsets=1)
    monkeypatch.setattr("foreword.research.experiments.trials.measure", without_a_loss)
    do(tiny_base, plan, tmp_path)
    results = do(tiny_base, plan, tmp_path, on_trial=lambda: pytest.fail("it was made before"))
    (piece,) = results.records.values()
    assert piece["curve"]["0"] is None
    assert piece["dev_loss"] == min(loss for loss in piece["curve"].values() if loss is not None)
    assert statistics.cell(results, plan, wild, 4, "measured", "loss") == statistics.Cell((), 1, 0, 1)
    assert len(statistics.cell(results, plan, wild, 4, "measured", "BLEU").values) == 1
    page = make_report("Trials", "command", results, plan, ["measured"], "tiny", 1000, "figures.png")
    assert "| wild | 1 not finite |" in page
