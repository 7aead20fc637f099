"""The report of trials, against a ledger filled by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foreword.baselines.method import RATE, methods_named
from foreword.experiments import tally
from foreword.experiments.choosing import choice_piece
from foreword.experiments.ledger import Ledger
from foreword.experiments.plan import Plan, Trial
from foreword.experiments.trials_report import make_report
from trials import small_plan

COSTS = {"trained": 1000, "kept": 50}


def filled(folder: Path, plan: Plan, figures: Callable[[Trial], dict[str, float]]) -> Ledger:
    """A ledger with all trials of the plan; step and seconds tell the size they are of."""
    ledger = Ledger(folder, "low-data", {"base fingerprint": "abc"})
    about = {
        "device": "a processor",
        "threads": 1,
        "cores": 1,
        "system": "Linux",
        "python": "3",
        "torch": "2",
    }
    ledger.begin_session(command="foreword reproduce old", transformers="5", foreword="0", **about)
    for trial in plan.trials():
        made = {"step": trial.size, "training_seconds": 10 * trial.size, **COSTS}
        ledger.add(trial.piece, figures={"measured": figures(trial)}, **made)
    return ledger


def page(ledger: Ledger, plan: Plan, command: str = "foreword reproduce old") -> str:
    return make_report("Trials", command, ledger, plan, ["measured"], "tiny", 10_000, "figures.png")


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

    ledger = filled(tmp_path, plan, figures)
    found = tally.duel(ledger, plan, prefix, lora, "measured", "BLEU")
    assert found is not None
    assert (found.mean, found.pairs, found.chance, found.verdict) == (4.5, 1, 1.0, "open")
    text = page(ledger, plan)
    assert "better in 1 of 1 subsets" in text
    assert "not settled by these subsets" in text
    assert "one choice of rates and one set of measured examples are shared by all trials" in text


def test_costs_are_of_one_size_each(tmp_path: Path) -> None:
    plan = small_plan(others=tuple(methods_named(["none"])))
    ledger = filled(tmp_path, plan, lambda trial: {"BLEU": 1.0, "loss": 1.0})
    ledger.pieces["prefix, n = 8, subset 1, seed 0"] |= {"step": 4, "training_seconds": 20.0}
    size = ["1,000", "50", "0.500%"]
    assert rows(page(ledger, plan), "Size and time") == [
        ["prefix", *size, "4", "4", "40"],
        ["prefix", *size, "8", "6", "50"],
        ["LoRA, prefix's size", *size, "4", "4", "40"],
        ["LoRA, prefix's size", *size, "8", "8", "80"],
        ["base model alone", *size, "6", "6", "60"],
    ]


@pytest.mark.parametrize(("best", "told"), [(5, True), (0, True), (3, False)])
def test_a_grid_that_ended_at_its_edge_is_named(tmp_path: Path, best: int, told: bool) -> None:
    plan = small_plan(tuned=True)
    ledger = filled(tmp_path, plan, by_hand)
    prefix, lora = plan.methods

    def note(method: Any, rate: float, loss: float | None) -> None:
        ledger.add(choice_piece(method, {RATE: rate}), choice={RATE: rate}, dev_loss=loss, step=1)

    for place in range(6):
        note(prefix, 0.01 * 2**place, 1.0 if place == best else 2.0 + place)
    for place in range(3):
        note(lora, 0.01 * 2**place, 1.0 + place)  # not at its end yet
    section = page(ledger, plan).split("## How rates and prompts were chosen\n")[1].split("\n## ")[0]
    assert ("a better one may lie beyond it: prefix.**" in section) is told


def test_the_command_of_the_page_is_shown_with_those_that_made_the_trials(tmp_path: Path) -> None:
    plan = small_plan()
    ledger = filled(tmp_path, plan, by_hand)
    same = page(ledger, plan)
    assert "```\nforeword reproduce old\n```" in same
    assert "starts of the run" not in same
    other = page(ledger, plan, "foreword reproduce new")
    assert "```\nforeword reproduce new\n```" in other
    assert "made in these starts of the run:\n\n1. `foreword reproduce old`\n" in other
