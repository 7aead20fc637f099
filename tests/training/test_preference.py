"""Training on preferences: the loss of DPO and its gradient by hand, what is learned, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid

from foreword import BaseModel, Example, Prefix, train, train_many
from foreword.base.prefix_batch import KeyValues, PrefixBatch
from foreword.encoding import EncodedExample
from foreword.errors import BadExamples, CheckpointMismatch, GeometryMismatch, OwnersFailed, UsageError
from foreword.examples import Preference, digest
from foreword.training import Progress, TrainingStopped
from foreword.training.preference import (
    DPO,
    EncodedPreference,
    encode_preferences,
    with_reference,
)
from support import by_hand
from support.stand_ins import byte_tokenizer, random_examples, random_prefix, tiny_llama
from support.tiny_bart import tiny_bart_base

PAIRS = [Preference(f"{a}{b}", "yes yes", "no no no") for a in "abcd" for b in "efgh"]
QUICK: dict[str, Any] = {"method": "dpo", "length": 4, "steps": 12, "batch_size": 4, "learning_rate": 5e-3}
ENCODED = [
    EncodedPreference((3, 9, 27), (4, 8, 0), rejected_ids=(7, 0)),
    EncodedPreference((50, 51), (70,), rejected_ids=(70, 71, 72)),
    EncodedPreference((3, 9), (5, 6), rejected_ids=(5, 9)),
]


def log_probability(
    base: BaseModel, row: EncodedExample, answer: Sequence[int], layers: by_hand.Layers | None
) -> torch.Tensor:
    return -by_hand.token_losses(base.model, row.source_ids, answer, layers).sum()


def loss_by_hand(
    base: BaseModel,
    pair: EncodedPreference,
    beta: float,
    policy: by_hand.Layers | None,
    reference: by_hand.Layers | None,
) -> torch.Tensor:
    """Formula 7 of Rafailov et al. (2023)."""
    with torch.no_grad():
        chosen_before, rejected_before = (
            log_probability(base, pair, answer, reference) for answer in (pair.target_ids, pair.rejected_ids)
        )
    chosen, rejected = (
        log_probability(base, pair, answer, policy) for answer in (pair.target_ids, pair.rejected_ids)
    )
    return -logsigmoid(beta * (chosen - chosen_before) - beta * (rejected - rejected_before))


def leaves_of(prefix: Prefix) -> KeyValues:
    return {
        stream: (key.clone().requires_grad_(), value.clone().requires_grad_())
        for stream, (key, value) in prefix.key_values().items()
    }


def same(one: Prefix, two: Prefix) -> bool:
    return all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


@pytest.mark.parametrize("started", [False, True])
def test_loss_and_gradient_are_those_of_the_formula(tiny_base: BaseModel, started: bool) -> None:
    start = random_prefix(tiny_base, 3, seed=5) if started else None
    pairs = with_reference(tiny_base, ENCODED, start, "prefix")
    leaves = leaves_of(random_prefix(tiny_base, 4))
    prefixes = PrefixBatch.from_tensors([leaves], [0] * len(pairs), ["prefix"], [tiny_base.positions])
    found = DPO(0.3).losses(tiny_base, pairs, prefixes)
    found.losses_M.sum().backward()
    by_hand_leaves = leaves_of(random_prefix(tiny_base, 4))
    layers = list(zip(*by_hand_leaves["decoder"], strict=True))
    reference = None if start is None else by_hand.layers_of(start)
    expected = torch.stack([loss_by_hand(tiny_base, pair, 0.3, layers, reference) for pair in ENCODED])
    expected.sum().backward()
    assert found.counts == (1, 1, 1)
    torch.testing.assert_close(found.losses_M, expected, rtol=1e-5, atol=1e-5)
    for leaf, other in zip(leaves["decoder"], by_hand_leaves["decoder"], strict=True):
        torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_measures_are_the_rewards_difference_and_whether_it_is_above_zero(tiny_base: BaseModel) -> None:
    pairs = with_reference(tiny_base, ENCODED, None, "prefix")
    prefixes = PrefixBatch.stack([random_prefix(tiny_base, 4)] * 3, tiny_base.device)
    found = DPO(0.3).losses(tiny_base, pairs, prefixes)
    margin_M = found.measures["reward_margin"]
    torch.testing.assert_close(-logsigmoid(margin_M), found.losses_M)
    assert found.measures["reward_accuracy"].tolist() == [float(each > 0) for each in margin_M.tolist()]
    assert not margin_M.requires_grad


def test_behind_the_reference_itself_no_answer_is_preferred(tiny_base: BaseModel) -> None:
    start = random_prefix(tiny_base, 3)
    pairs = with_reference(tiny_base, ENCODED, start, "infix")
    prefixes = PrefixBatch.from_tensors([start.key_values()], [0] * 3, ["infix"], [tiny_base.positions])
    losses_M = DPO(0.3).losses(tiny_base, pairs, prefixes).losses_M
    torch.testing.assert_close(losses_M, torch.full((3,), math.log(2)), rtol=1e-5, atol=0)


def test_an_encoder_decoder_learns_from_preferences() -> None:
    prefix = train(tiny_bart_base(), PAIRS, **{**QUICK, "steps": 30}, dev=PAIRS)
    assert prefix.report["dev_reward_accuracy"] == 1.0


def test_both_answers_have_the_source_that_the_longer_one_leaves(tiny_base: BaseModel) -> None:
    pairs, cut = encode_preferences(
        [Preference("a" * 30, "b" * 12, "c" * 3)], tiny_base.tokenizer, tiny_base.template, 24
    )
    row, other = pairs[0].rows
    assert row.source_ids == other.source_ids
    assert row.tokens == 24
    assert (len(row.target_ids), len(other.target_ids)) == (13, 4)  # the end token with them
    assert (cut.sources, cut.targets) == (1, 0)
    assert pairs[0].tokens == row.tokens + other.tokens


def test_training_makes_the_chosen_answers_likelier_than_the_others(tiny_base: BaseModel) -> None:
    seen: list[Progress] = []
    prefix = train(tiny_base, PAIRS[:12], dev=PAIRS[12:], on_progress=seen.append, **{**QUICK, "steps": 40})
    chosen, rejected = (
        torch.tensor(
            [
                -float(losses.sum())
                for given in (prefix, None)
                for losses in tiny_base.token_losses(
                    [Example(pair.source, answer) for pair in PAIRS[12:]], given
                )
            ]
        ).view(2, -1)
        for answer in ("yes yes", "no no no")
    )
    margin = 0.1 * ((chosen[0] - chosen[1]) - (rejected[0] - rejected[1]))
    assert (margin > 0).all()
    assert prefix.report["method"] == "dpo"
    assert prefix.report["beta"] == 0.1
    assert prefix.report["dev_reward_accuracy"] == 1.0
    assert prefix.report["dev_reward_margin"] == pytest.approx(float(margin.mean()), rel=1e-3)
    assert prefix.origin.dev_loss == pytest.approx(float(-logsigmoid(margin).mean()), rel=1e-3)
    assert prefix.origin.data_digest == digest(PAIRS[:12])
    assert seen[-1].dev_measures["reward_accuracy"] == 1.0
    assert seen[-1].measures["reward_margin"] > 0


def test_a_higher_beta_holds_the_result_nearer_to_the_reference(tiny_base: BaseModel) -> None:
    def moved(beta: float) -> float:
        start = random_prefix(tiny_base, 4, scale=0.1, template=tiny_base.template)
        prefix = train(tiny_base, PAIRS, **{**QUICK, "steps": 60}, start=start, beta=beta)
        return sum(
            float((prefix.tensors[name] - start.tensors[name]).square().sum()) for name in start.tensors
        )

    assert moved(2.0) < moved(0.05)


def test_log_and_pictures_hold_accuracy_and_margin(tiny_base: BaseModel, tmp_path: Path) -> None:
    train(tiny_base, PAIRS[:12], dev=PAIRS[12:], checkpoint_dir=tmp_path, **QUICK)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "token_loss" in row]
    dev = [row for row in rows if "dev_loss" in row]
    assert len(steps) == QUICK["steps"]
    for row in steps:
        assert row["loss"] == row["token_loss"]
        assert 0 <= row["reward_accuracy"] <= 1
        assert row["loss"] >= -math.log(1 / (1 + math.exp(-row["reward_margin"]))) - 1e-6  # Jensen
    assert all({"dev_reward_accuracy", "dev_reward_margin"} <= row.keys() for row in dev)
    assert dev[0]["step"] == 0
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_a_stopped_run_ends_in_the_same_prefix_bit_for_bit(tiny_base: BaseModel, tmp_path: Path) -> None:
    start = random_prefix(tiny_base, 4, template=tiny_base.template)
    options = {**QUICK, "start": start, "dev": PAIRS[12:]}
    whole = train(tiny_base, PAIRS[:12], **options)

    def stop(progress: Progress) -> None:
        if progress.step == 7 and progress.note is None:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingStopped):
        train(tiny_base, PAIRS[:12], checkpoint_dir=tmp_path, on_progress=stop, **options)
    resumed = train(tiny_base, PAIRS[:12], checkpoint_dir=tmp_path, **options)
    assert same(whole, resumed)
    assert whole.report == resumed.report


def test_another_beta_is_another_run(tiny_base: BaseModel, tmp_path: Path) -> None:
    train(tiny_base, PAIRS, checkpoint_dir=tmp_path, **QUICK)
    with pytest.raises(CheckpointMismatch, match="settings.beta is 0.2, was 0.1"):
        train(tiny_base, PAIRS, checkpoint_dir=tmp_path, beta=0.2, **QUICK)


def test_owners_in_one_run_get_what_they_get_alone(tiny_base: BaseModel) -> None:
    start = random_prefix(tiny_base, 4, template=tiny_base.template)
    data = {"alice": PAIRS[:6], "bob": [Preference(p.source, p.rejected, p.chosen) for p in PAIRS[6:]]}
    dev = {"alice": PAIRS[12:]}
    together = train_many(tiny_base, data, dev=dev, start=start, isolated=True, **QUICK)
    shared = train_many(tiny_base, data, dev=dev, start=start, **QUICK)
    for owner, pairs in data.items():
        alone = train(tiny_base, pairs, dev=dev.get(owner), start=start, **QUICK)
        assert same(alone, together[owner])
        for name, tensor in alone.tensors.items():
            torch.testing.assert_close(shared[owner].tensors[name], tensor, rtol=1e-3, atol=1e-3)
    assert together["alice"].report["dev_reward_accuracy"] > 0.5
    assert together["bob"].report == {"method": "dpo", "beta": 0.1}


def test_dividing_a_step_changes_nothing_but_the_last_bits(tiny_base: BaseModel) -> None:
    one = train(tiny_base, PAIRS, **QUICK)
    for options in ({"gradient_accumulation": 3}, {"gradient_checkpointing": True}):
        other = train(tiny_base, PAIRS, **QUICK, **options)
        for name, tensor in one.tensors.items():
            torch.testing.assert_close(other.tensors[name], tensor, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.2}, "beta is 0.2, and the method is supervised, which has none"),
        ({"method": "dpo", "beta": 0}, "beta is 0; expected a positive number"),
        ({"method": "dpo", "reduction": "sequence"}, "reduction is 'sequence', which is about target tokens"),
        ({"method": "ppo"}, "method is 'ppo'; expected supervised or dpo"),
    ],
)
def test_settings_that_do_nothing_are_refused(
    tiny_base: BaseModel, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train(tiny_base, PAIRS, **options)


def test_data_of_the_other_method_are_refused(tiny_base: BaseModel) -> None:
    examples = random_examples(3)
    with pytest.raises(
        BadExamples, match="example 0 is of type Example, and the method dpo learns from Preference"
    ):
        train(tiny_base, examples, method="dpo")
    with pytest.raises(
        BadExamples, match="example 0 is of type Preference, and the method supervised learns"
    ):
        train(tiny_base, PAIRS)
    with pytest.raises(BadExamples, match="example 1 is of type Example"):
        train(tiny_base, PAIRS, dev=[PAIRS[0], examples[0]], method="dpo")
    with pytest.raises(OwnersFailed) as failed:
        train_many(tiny_base, {"alice": PAIRS, "bob": examples}, **QUICK)
    assert list(failed.value.prefixes) == ["alice"]
    assert isinstance(failed.value.errors["bob"], BadExamples)


def test_a_start_of_another_base_is_refused(tiny_base: BaseModel) -> None:
    other = BaseModel(tiny_llama(num_key_value_heads=4), byte_tokenizer(), name="other")
    with pytest.raises(GeometryMismatch):
        train(tiny_base, PAIRS, start=random_prefix(other, 4), **QUICK)


def test_answers_that_are_equal_are_refused(tiny_base: BaseModel) -> None:
    with pytest.raises(BadExamples, match="chosen and rejected are equal, so that neither is better"):
        Preference("a", "yes", "yes")
    long = Preference("ab", "c" * 100 + "d", "c" * 100 + "e", place="pairs.jsonl, line 7")
    with pytest.raises(BadExamples) as refused:
        train(tiny_base, [long], **QUICK, max_length=40)
    assert (
        "example 0 (pairs.jsonl, line 7): chosen and rejected are equal as tokens once they are cut to 40"
        in str(refused.value)
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("a", "", "no"), "chosen is empty"),
        (("a", "yes", "  "), "rejected is empty"),
        (("a", 3, "no"), "chosen is a number; expected text"),
        ((7, "yes", "no"), "source is a number"),
        (("a", "yes", "no", " "), "owner is empty"),
    ],
)
def test_what_is_no_preference_is_refused(given: tuple[Any, ...], message: str) -> None:
    with pytest.raises(BadExamples, match=message):
        Preference(*given)


def test_owner_and_answers_are_in_the_digest_and_the_place_is_not() -> None:
    one = Preference("a", "yes", "no")
    assert digest([one]) == digest([dataclasses.replace(one, place="a.jsonl, line 1")])
    others = [
        Preference("a", "no", "yes"),
        Preference("a", "yes", "no", "alice"),
        Preference("b", "yes", "no"),
    ]
    assert len({digest([each]) for each in (one, *others)}) == 4
