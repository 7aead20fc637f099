"""What can't be tried is refused before the first training, and says why."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Olmo2Config, Olmo2ForCausalLM

from foreword import BaseModel, Example
from foreword.errors import UnsupportedArchitecture, UsageError, WindowExceeded
from foreword.examples import Entry
from foreword.research.baselines.registry import METHODS, VARIANTS, methods_named
from foreword.research.experiments.checks import check, check_chosen, choices, without_unsupported
from foreword.research.experiments.results import Results
from foreword.research.experiments.splits import DataSplits
from foreword.research.experiments.trials import run, settings_of
from support.stand_ins import VOCABULARY, byte_tokenizer, random_examples
from support.tiny_bart import tiny_bart_base
from support.trials import small_plan, small_splits

WINDOW = 128
"""Of the tiny base."""


@pytest.fixture(scope="module")
def tiny_bart() -> BaseModel:
    return tiny_bart_base(WINDOW)


def with_measured(tokens: int) -> DataSplits:
    """Measured is one example that takes so many tokens: source, newline, target, without its end."""
    entry = Entry("a" * (tokens - 2), ("b",))
    return dataclasses.replace(small_splits(), measured={"seen": [entry]})


def tiny_olmo() -> Olmo2ForCausalLM:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    torch.manual_seed(0)
    return Olmo2ForCausalLM(
        Olmo2Config(vocab_size=VOCABULARY, pad_token_id=0, eos_token_id=0, **sizes, **heads)
    )


def plan_of(*names: str, **changes: Any) -> Any:
    return small_plan(methods=tuple(methods_named(names)), **changes)


def test_all_methods_can_be_tried_with_short_examples(tiny_base: BaseModel) -> None:
    check(tiny_base, small_splits(), plan_of(*METHODS, *VARIANTS, tuned=True, subsets=1))


@pytest.mark.parametrize(
    ("name", "length", "fits"), [("prefix", 2, 126), ("length-20", 2, 108), ("fine-tuning", 2, 128)]
)
def test_a_measured_example_has_to_fit_behind_what_is_in_front(
    tiny_base: BaseModel, name: str, length: int, fits: int
) -> None:
    plan = plan_of(name, length=length)
    check(tiny_base, with_measured(fits), plan)
    message = f"{name}: example 0 of those measured \\(seen\\).* has {fits + 1} tokens; {fits} fit .*tiny"
    with pytest.raises(WindowExceeded, match=message):
        check(tiny_base, with_measured(fits + 1), plan)


def test_a_training_example_that_is_not_cut_enough_says_to_what(tiny_base: BaseModel) -> None:
    long = [Example("a" * 200, "b"), *random_examples(5)]
    splits = dataclasses.replace(small_splits(), train=long)
    plan = plan_of("prefix", sizes=(6,), subsets=1, tuning_size=2)
    check(tiny_base, splits, plan)  # cut to 100
    with pytest.raises(WindowExceeded, match="has 200 tokens; 126 fit .* Cut them with --max-length 126"):
        check(tiny_base, splits, dataclasses.replace(plan, max_length=200))


def test_numbers_of_demonstrations_that_do_not_fit_are_left_out(tiny_base: BaseModel, tmp_path: Path) -> None:
    few = METHODS["few-shot"]
    ten = [Example(f"source {number}.", "tens") for number in range(9)] * 4  # 15 tokens each, the end with it
    short = DataSplits(ten, ten[:3], small_splits().measured)
    plan = plan_of("few-shot", tuned=True, instruction="Say", sizes=(9,), subsets=1, tuning_size=9)
    assert choices(tiny_base, few, short, plan) == [{"shots": 2}, {"shots": 4}]
    check(tiny_base, short, plan)
    results = Results(tmp_path, "low-data", settings_of(tiny_base, short, plan))
    run(tiny_base, short, plan, results, tmp_path, lambda *_: None)
    assert {name for name in results.records if name.startswith("grid")} == {
        "grid of few-shot: shots 2",
        "grid of few-shot: shots 4",
    }
    assert results.records["few-shot, n = 9, subset 0, seed 0"]["figures"]

    room_for_two = dataclasses.replace(plan, instruction="S" * 60)
    (only,) = choices(tiny_base, few, short, room_for_two)
    results = Results(tmp_path / "two", "low-data", settings_of(tiny_base, short, room_for_two))
    run(tiny_base, short, room_for_two, results, tmp_path / "two", lambda *_: None)
    assert {tuple(record["choice"].items()) for record in results.records.values()} == {(("shots", 2),)}
    assert only == {"shots": 2}

    for changes in ({"instruction": "S" * 110}, {"tuned": False, "instruction": "S" * 60}):
        with pytest.raises(WindowExceeded, match="few-shot: "):
            check(tiny_base, short, dataclasses.replace(plan, **changes))


def test_repeats_of_one_and_the_same_subset_are_refused(tiny_base: BaseModel) -> None:
    check(tiny_base, small_splits(), plan_of("prefix", sizes=(30,), subsets=1, seeds=3))
    with pytest.raises(UsageError, match="2 subsets of 30 training examples .* Take one subset"):
        check(tiny_base, small_splits(), plan_of("prefix", sizes=(4, 30), subsets=2))
    others = tuple(methods_named(["none"]))
    with pytest.raises(UsageError, match="all would be the same"):
        check(tiny_base, small_splits(), plan_of("prefix", others=others, tuning_size=30))


@pytest.mark.parametrize("name", ["lora", "peft-prefix", "prompt-tuning", "adapter", "infix"])
def test_what_an_encoder_decoder_can_not_have_is_refused_by_name(tiny_bart: BaseModel, name: str) -> None:
    check(tiny_bart, small_splits(), plan_of("prefix", "fine-tuning"))
    with pytest.raises(UsageError, match=f"^{name}: .*"):
        check(tiny_bart, small_splits(), plan_of("prefix", name))


def test_a_prompt_once_chosen_is_kept_as_the_run_grows_or_refused(
    tiny_base: BaseModel, tmp_path: Path
) -> None:
    few = METHODS["few-shot"]
    short = [Example(f"source {number}.", "tens") for number in range(6)]
    splits = DataSplits(short * 5, short[:3], small_splits().measured)
    plan = plan_of("few-shot", tuned=True, instruction="Say", sizes=(6,), subsets=1, tuning_size=9)
    assert choices(tiny_base, few, splits, plan) == [{"shots": 2}, {"shots": 4}]
    results = Results(tmp_path, "low-data", settings_of(tiny_base, splits, plan))
    results.add("choice of few-shot", choice={"shots": 4})
    more = dataclasses.replace(plan, subsets=2)
    check_chosen(tiny_base, splits, more, results)
    run(tiny_base, splits, more, results, tmp_path, lambda *_: None)
    assert not any(name.startswith("grid") for name in results.records)  # nothing is chosen again
    trials = [record for name, record in results.records.items() if "subset" in name]
    assert [trial["choice"] for trial in trials] == [{"shots": 4}] * 2
    too_long = dataclasses.replace(more, instruction="S" * 80)
    with pytest.raises(WindowExceeded, match="few-shot: all trials of this run have to have .* shots 4"):
        check_chosen(tiny_base, splits, too_long, results)


def test_what_the_base_cannot_have_is_told_apart_from_what_it_can() -> None:
    """PEFT knows where LoRA goes for some architectures only, and says so with errors of its own."""
    base = BaseModel(tiny_olmo(), byte_tokenizer(), name="tiny-olmo")
    kept, refused = without_unsupported(
        base, methods_named(["prefix", "lora-8", "none"]), small_splits(), plan_of("prefix")
    )
    assert [method.name for method in kept] == ["prefix", "none"]
    assert "lora-8: PEFT has no such method for" in refused["lora-8"]
    with pytest.raises(UnsupportedArchitecture, match="lora-8: .* Leave the method out"):
        check(base, small_splits(), plan_of("lora-8"))
