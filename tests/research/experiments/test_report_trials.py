"""The report of trials, against a results filled by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foreword.research.baselines.registry import RATE, methods_named
from foreword.research.experiments import statistics
from foreword.research.experiments.plan import Plan, Trial
from foreword.research.experiments.report_trials import make_report
from foreword.research.experiments.results import Results, choice_key
from support.trials import small_plan

COSTS = {"trained": 1000, "kept": 50}


def filled(folder: Path, plan: Plan, figures: Callable[[Trial], dict[str, float]]) -> Results:
    """A results with all trials of the plan; step and seconds tell the size they are of."""
    results = Results(folder, "low-data", {"base fingerprint": "abc"})
    about = {
        "device": "a processor",
        "threads": 1,
        "cores": 1,
        "system": "Linux",
        "python": "3",
        "torch": "2",
    }
    results.begin_session(command="foreword reproduce old", transformers="5", foreword="0", **about)
    for trial in plan.trials():
        made = {"step": trial.size, "training_seconds": 10 * trial.size, **COSTS}
        results.add(trial.key, figures={"measured": figures(trial)}, **made)
    return results


def page(results: Results, plan: Plan, command: str = "foreword reproduce old") -> str:
    return make_report("Trials", command, results, plan, ["measured"], "tiny", 10_000, "figures.png")


def rows(text: str, heading: str) -> list[list[str]]:
    """Cells of the first table under a heading, without its head."""
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def by_hand(trial: Trial) -> dict[str, float]:
    # LoRA is ahead by 1 on subset 0 and behind by 2 on subset 1, of every size.
    ahead = {"prefix": 0, "lora": 1 if trial.subset == 0 else -2}[trial.method.name]
    return {"BLEU": 20.0 + trial.size + ahead, "loss": 2.0 - ahead / 10}


def test_the_best_mean_of_each_size_is_bold_and_low_is_best_of_losses(tmp_path: Path) -> None:
    plan = small_plan()
    text = page(filled(tmp_path, plan, by_hand), plan)
    assert rows(text, "BLEU") == [
        ["prefix", "**24.00** ± 0.00", "**28.00** ± 0.00"],
        ["LoRA, prefix's size", "23.50 ± 2.12", "27.50 ± 2.12"],
    ]
    assert [row[1].startswith("**") for row in rows(text, "Loss")] == [True, False]


def test_every_rival_is_compared_by_every_figure_with_its_sign(tmp_path: Path) -> None:
    plan = small_plan()
    found = rows(page(filled(tmp_path, plan, by_hand), plan), "Trial by trial")
    # Gains of the prefix: -1, +2, -1, +2 BLEU; mean 0.5, deviation sqrt(9 / 3).
    assert found == [
        ["LoRA, prefix's size", "BLEU", "+0.50 ± 1.73", "2 of 4", "1"],
        ["LoRA, prefix's size", "loss", "+0.050 ± 0.173", "2 of 4", "1"],
    ]


def test_seeds_of_a_subset_count_as_one(tmp_path: Path) -> None:
    plan = small_plan(subsets=1, seeds=8, sizes=(4,))
    prefix, lora = plan.methods

    def figures(trial: Trial) -> dict[str, float]:
        return {"BLEU": float(trial.seed) if trial.method == prefix else -1.0, "loss": 1.0}

    results = filled(tmp_path, plan, figures)
    found = statistics.paired_comparison(results, plan, prefix, lora, "measured", "BLEU")
    assert found is not None
    assert (found.mean, found.pairs, found.p_value, found.verdict) == (4.5, 1, 1.0, "open")
    text = page(results, plan)
    assert (
        "- **prefix vs LoRA, prefix's size, BLEU: no significant difference** (mean difference +4.50; better in "
        "1 of 1 subsets; p = 1).\n"
    ) in text
    assert "over 1 subset of the training data at each n, with 8 seeds each" in text
    assert "With 1 subset in all no difference can be significant: even if all of them agree, p is 1." in text


def test_the_difference_of_each_size_is_in_words(tmp_path: Path) -> None:
    plan = small_plan()

    def figures(trial: Trial) -> dict[str, float]:
        ahead = {4: 3.0, 8: -1.0}[trial.size] + trial.subset
        return {"BLEU": 20.0 + (ahead if trial.method.name == "prefix" else 0.0), "loss": 1.0}

    text = page(filled(tmp_path, plan, figures), plan)
    # Differences: 3, 4 at the one size, -1, 0 at the other; mean 1.5.
    assert (
        "BLEU: no significant difference** (mean difference +1.50 ± 2.38; better in 2 of 4 subsets; p = 1). "
        "By size: n = 4: +3.50, n = 8: -0.50."
    ) in text
    assert "loss: no significant difference** (mean difference +0.000 ± 0.000; better in 0 of 4" in text


def test_those_tried_at_one_size_are_told_in_one_line_the_largest_difference_first(tmp_path: Path) -> None:
    others = methods_named(["top-2", "adapter", "none", "lora-8"])
    plan = small_plan(
        methods=tuple(methods_named(["prefix"])), others=tuple(others), sizes=(4, 8), tuning_size=4
    )
    behind = {"prefix": 0.0, "top-2": 1.0, "adapter": -2.0, "none": 9.0, "lora-8": 0.0}

    def figures(trial: Trial) -> dict[str, float]:
        worse = behind[trial.method.name] * (1 if trial.size == 4 else -50)
        return {"BLEU": 20.0 - worse * (1 + trial.subset), "loss": 1.0 + worse / 10}

    # A run may have had them at every size before: only the one size is told of.
    filled(tmp_path, dataclasses.replace(plan, methods=(*plan.methods, *others), others=()), figures)
    results = filled(tmp_path, plan, figures)
    for subset in range(2):
        results.records[Trial(others[3], 4, subset, 0).key] = {"choice": {RATE: 1.0}, "diverged": True}
    said = page(results, plan).split("## What it says\n")[1].split("\n## ")[0]
    head = (
        "- **prefix vs the other methods at n = 4, {}** (mean difference; subsets where prefix is ahead; "
        "2 subsets of one size, no test): "
    )
    assert said.strip().splitlines() == [
        head.format("BLEU") + "base model alone: +9.00 (2 of 2); fine-tuning, top 2 layers: +1.50 (2 of 2); "
        "adapter, at most prefix's size: -3.00 (0 of 2); LoRA, r = 8: - (2 of 2).",
        head.format("loss")
        + "base model alone: +0.900 (2 of 2); fine-tuning, top 2 layers: +0.100 (2 of 2); "
        "adapter, at most prefix's size: -0.200 (0 of 2); LoRA, r = 8: - (2 of 2).",
    ]


def test_a_mean_of_what_is_left_is_not_the_best_and_a_diverged_subset_is_lost(tmp_path: Path) -> None:
    plan = small_plan(subsets=6, sizes=(4,))
    prefix, lora = plan.methods
    results = filled(tmp_path, plan, lambda t: {"BLEU": 10.0 if t.method == prefix else 11.0, "loss": 1.0})
    for subset in range(5):
        results.records[Trial(lora, 4, subset, 0).key] = {"choice": {RATE: 1.0}, "diverged": True}
    text = page(results, plan)
    assert rows(text, "BLEU") == [
        ["prefix", "10.00 ± 0.00"],
        ["LoRA, prefix's size", "11.00 (1 of 6 trials, 5 diverged)"],
    ]
    found = statistics.paired_comparison(results, plan, prefix, lora, "measured", "BLEU")
    assert found is not None
    assert (found.mean, found.better, found.worse, found.pairs) == (-1.0, 5, 1, 6)
    del results.records[Trial(lora, 4, 5, 0).key]
    results.records[Trial(lora, 4, 5, 0).key] = {"choice": {RATE: 1.0}, "diverged": True}
    text = page(results, plan)
    assert "BLEU: prefix is better** (mean difference -; better in 6 of 6 subsets; p = 0.031)." in text
    assert ["LoRA, prefix's size", "5 diverged"] not in rows(text, "BLEU")
    assert rows(text, "BLEU")[1] == ["LoRA, prefix's size", "6 diverged"]


def test_a_method_that_sees_no_training_examples_is_tried_once_and_compared_with_every_subset(
    tmp_path: Path,
) -> None:
    plan = small_plan(methods=tuple(methods_named(["prefix", "none"])), subsets=3, seeds=2)
    prefix, none = plan.methods
    assert [trial for trial in plan.trials() if trial.method == none] == [
        Trial(none, 4, 0, 0),
        Trial(none, 8, 0, 0),
    ]
    results = filled(
        tmp_path, plan, lambda t: {"BLEU": 9.0 if t.method == none else 8.0 + t.subset, "loss": 1.0}
    )
    found = statistics.paired_comparison(results, plan, prefix, none, "measured", "BLEU")
    assert found is not None
    assert (found.mean, found.better, found.worse, found.ties) == (0.0, 2, 2, 2)
    text = page(results, plan)
    assert "not finished" not in text.lower()
    assert rows(text, "BLEU")[1] == ["base model alone", "**9.00**", "**9.00**"]
    assert "is measured once, and compared with every subset" in text


def test_costs_are_of_one_size_each(tmp_path: Path) -> None:
    plan = small_plan(others=tuple(methods_named(["none"])))
    results = filled(tmp_path, plan, lambda trial: {"BLEU": 1.0, "loss": 1.0})
    results.records["prefix, n = 8, subset 1, seed 0"] |= {"step": 4, "training_seconds": 20.0}
    size = ["1,000", "50", "0.500%"]
    assert rows(page(results, plan), "Size and time") == [
        ["prefix", *size, "4", "4", "40"],
        ["prefix", *size, "8", "6", "50"],
        ["LoRA, prefix's size", *size, "4", "4", "40"],
        ["LoRA, prefix's size", *size, "8", "8", "80"],
        ["base model alone", *size, "6", "6", "60"],
    ]


@pytest.mark.parametrize(("best", "told"), [(5, True), (0, True), (3, False)])
def test_a_grid_that_ended_at_its_edge_is_named(tmp_path: Path, best: int, told: bool) -> None:
    plan = small_plan(tuned=True)
    results = filled(tmp_path, plan, by_hand)
    prefix, lora = plan.methods

    def note(method: Any, rate: float, loss: float | None) -> None:
        results.add(choice_key(method, {RATE: rate}), choice={RATE: rate}, dev_loss=loss, step=1)

    for place in range(6):
        note(prefix, 0.01 * 2**place, 1.0 if place == best else 2.0 + place)
    for place in range(3):
        note(lora, 0.01 * 2**place, 1.0 + place)  # not at its end yet
    section = page(results, plan).split("## How rates and prompts were chosen\n")[1].split("\n## ")[0]
    assert ("a better one may lie beyond it: prefix.**" in section) is told


def test_the_command_of_the_page_is_shown_with_those_that_made_the_trials(tmp_path: Path) -> None:
    plan = small_plan()
    results = filled(tmp_path, plan, by_hand)
    same = page(results, plan)
    assert "```\nforeword reproduce old\n```" in same
    assert "starts of the run" not in same
    other = page(results, plan, "foreword reproduce new")
    assert "```\nforeword reproduce new\n```" in other
    assert "made in these starts of the run:\n\n1. `foreword reproduce old`\n" in other
