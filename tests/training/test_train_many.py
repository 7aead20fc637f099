"""Many owners in one run: each gets what they would get alone, from their own data alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from foreword import BaseModel, Example, Prefix, train, train_many
from foreword.errors import BadExamples, NonFinitePrefix, OwnersFailed, UsageError
from foreword.training import Progress, TrainingStopped
from foreword.training.trainer import Trainer
from support.stand_ins import random_examples, random_prefix

OPTIONS: dict[str, Any] = {
    "length": 4,
    "steps": 10,
    "batch_size": 3,
    "parameterization": "direct",
    "learning_rate": 0.05,
}
OWNERS = {
    "alice": random_examples(9, seed=1),
    "bob": random_examples(5, seed=2),
    "eve": random_examples(20, seed=3),
}


def same(one: Prefix, two: Prefix) -> bool:
    return all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


def close(one: Prefix, two: Prefix, tolerance: float = 1e-5) -> bool:
    return all(
        (one.tensors[n] - two.tensors[n]).norm() <= tolerance * two.tensors[n].norm() for n in one.tensors
    )


def test_an_owner_beside_others_gets_the_prefix_they_get_alone(tiny_base: BaseModel) -> None:
    together = train_many(tiny_base, OWNERS, **OPTIONS)
    assert set(together) == set(OWNERS)
    for owner, examples in OWNERS.items():
        assert close(together[owner], train(tiny_base, examples, **OPTIONS))


def test_isolated_owners_get_it_bit_for_bit(tiny_base: BaseModel) -> None:
    together = train_many(tiny_base, OWNERS, **OPTIONS, isolated=True)
    for owner, examples in OWNERS.items():
        assert same(together[owner], train(tiny_base, examples, **OPTIONS))


@pytest.mark.parametrize("isolated", [False, True])
def test_changing_all_of_bobs_data_changes_nothing_of_alices(tiny_base: BaseModel, isolated: bool) -> None:
    one = train_many(tiny_base, OWNERS, **OPTIONS, isolated=isolated)
    others = {**OWNERS, "bob": random_examples(7, seed=99), "eve": random_examples(2, seed=98)}
    two = train_many(tiny_base, others, **OPTIONS, isolated=isolated)
    assert same(one["alice"], two["alice"]) if isolated else close(one["alice"], two["alice"])
    assert not close(one["bob"], two["bob"], 1e-2)


def test_owners_of_very_different_size_share_a_run(tiny_base: BaseModel) -> None:
    owners = {"few": random_examples(1), "many": random_examples(200, seed=4)}
    prefixes = train_many(tiny_base, owners, length=3, epochs=1, batch_size=8)
    assert prefixes["few"].origin.steps == 1
    assert prefixes["many"].origin.steps == 25


def test_owners_enter_as_places_fall_free(tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    living = most = 0
    build, finished = Trainer.__init__, Trainer.result

    def enter(self: Trainer, *args: Any, **kwargs: Any) -> None:
        nonlocal living, most
        living += 1
        most = max(most, living)
        build(self, *args, **kwargs)

    def leave(self: Trainer) -> Any:
        nonlocal living
        living -= 1
        return finished(self)

    monkeypatch.setattr(Trainer, "__init__", enter)
    monkeypatch.setattr(Trainer, "result", leave)
    handed: list[str] = []
    read: list[int] = []

    def stream() -> Any:
        for number in range(12):
            read.append(len(handed))
            yield f"owner-{number}", random_examples(2, seed=number)

    result = train_many(
        tiny_base,
        stream(),
        length=2,
        steps=2,
        batch_size=2,
        concurrent_owners=3,
        into=lambda owner, _: handed.append(owner),
    )
    assert result == {}
    assert sorted(handed) == sorted(f"owner-{n}" for n in range(12))
    assert most <= 3
    assert read[-1] >= 9  # the last ones were not asked for before the first had left


def test_each_owner_keeps_their_own_best_dev_step_and_patience(tiny_base: BaseModel) -> None:
    dev = {"alice": random_examples(2, seed=11), "bob": [Example("x", "never seen")]}
    options = {**OPTIONS, "steps": 40, "learning_rate": 0.05, "evaluate_every": 2, "patience": 2}
    together = train_many(tiny_base, OWNERS, dev=dev, **options, isolated=True)
    for owner in OWNERS:
        patience = 2 if owner in dev else None
        alone = train(tiny_base, OWNERS[owner], dev=dev.get(owner), **{**options, "patience": patience})
        assert together[owner].origin == alone.origin
        assert same(together[owner], alone)


def test_a_stopped_run_of_many_ends_in_the_same_prefixes(tiny_base: BaseModel, tmp_path: Path) -> None:
    whole = train_many(tiny_base, OWNERS, **OPTIONS, isolated=True, concurrent_owners=2)

    def interrupt(progress: Progress) -> None:
        if progress.owner == "alice" and progress.step == 4 and progress.note is None:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingStopped):
        train_many(
            tiny_base,
            OWNERS,
            **OPTIONS,
            isolated=True,
            concurrent_owners=2,
            checkpoint_dir=tmp_path,
            on_progress=interrupt,
        )
    assert {path.name for path in tmp_path.iterdir()} == {"@alice", "@bob"}
    resumed = train_many(
        tiny_base, OWNERS, **OPTIONS, isolated=True, concurrent_owners=2, checkpoint_dir=tmp_path
    )
    assert all(same(whole[owner], resumed[owner]) for owner in OWNERS)


def test_an_owner_name_can_not_leave_the_folder(tiny_base: BaseModel, tmp_path: Path) -> None:
    owners = {"../../evil": random_examples(2), "..": random_examples(2), "a/b": random_examples(2)}
    train_many(tiny_base, owners, length=2, steps=1, batch_size=1, checkpoint_dir=tmp_path / "runs")
    assert {path.name for path in tmp_path.rglob("*") if path.is_dir()} == {
        "runs",
        "@..%2F..%2Fevil",
        "@..",
        "@a%2Fb",
    }


def test_one_owners_fault_leaves_the_others_their_prefixes(tiny_base: BaseModel) -> None:
    with pytest.raises(OwnersFailed, match="empty: there are no training examples") as caught:
        train_many(tiny_base, {**OWNERS, "empty": []}, **OPTIONS, isolated=True)
    assert isinstance(caught.value.errors["empty"], BadExamples)
    assert same(caught.value.prefixes["alice"], train(tiny_base, OWNERS["alice"], **OPTIONS))


def test_a_diverging_owner_leaves_and_the_others_go_on(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Trainer.update

    def poisoned(self: Trainer, compiled: Any, gradients: Any) -> float:
        norm = update(self, compiled, gradients)
        if self.owner == "bob" and self.step == 3:
            with torch.no_grad():
                next(iter(self.trained.parameters.parameters())).fill_(float("inf"))
        return norm

    monkeypatch.setattr(Trainer, "update", poisoned)
    with pytest.raises(OwnersFailed, match="bob: the loss became") as caught:
        train_many(tiny_base, OWNERS, **OPTIONS)
    assert set(caught.value.prefixes) == {"alice", "eve"}
    assert close(caught.value.prefixes["alice"], train(tiny_base, OWNERS["alice"], **OPTIONS))


def test_an_owner_whose_numbers_overflow_in_the_last_step_leaves_the_others_theirs(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No loss is computed behind the last step, so that nothing diverges: the prefix is what is refused."""
    update = Trainer.update

    def overflowing(self: Trainer, compiled: Any, gradients: Any) -> float:
        norm = update(self, compiled, gradients)
        if self.owner == "bob" and self.step == self.steps:
            with torch.no_grad():
                next(iter(self.trained.parameters.parameters())).fill_(float("inf"))
        return norm

    monkeypatch.setattr(Trainer, "update", overflowing)
    failed: dict[str, Exception] = {}
    with pytest.raises(OwnersFailed, match="bob: ") as caught:
        train_many(tiny_base, OWNERS, **{**OPTIONS, "steps": 2}, on_failure=failed.__setitem__)
    assert isinstance(caught.value.errors["bob"], NonFinitePrefix)
    assert failed == caught.value.errors
    assert set(caught.value.prefixes) == {"alice", "eve"}


def test_a_shared_start_is_where_every_owner_begins(tiny_base: BaseModel) -> None:
    shared = random_prefix(tiny_base, 4)
    options = {**OPTIONS, "steps": 1, "learning_rate": 1e-9}
    prefixes = train_many(tiny_base, OWNERS, **options, start=shared)
    for prefix in prefixes.values():
        torch.testing.assert_close(prefix.key(), shared.key(), rtol=1e-6, atol=1e-6)
    with pytest.raises(UsageError, match="length 4, the run has 5"):
        train_many(tiny_base, OWNERS, **{**options, "length": 5}, start=shared)


def test_passes_are_divided_by_tokens_without_changing_the_result(tiny_base: BaseModel) -> None:
    one = train_many(tiny_base, OWNERS, **OPTIONS)
    small = train_many(tiny_base, OWNERS, **OPTIONS, max_batch_tokens=30)
    assert all(close(one[owner], small[owner]) for owner in OWNERS)


def test_an_owner_that_comes_twice_is_refused(tiny_base: BaseModel) -> None:
    with pytest.raises(UsageError, match="comes twice"):
        train_many(tiny_base, [("a", random_examples(2)), ("a", random_examples(2))], **OPTIONS)


def passes_of(base: BaseModel, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[dict[str, int]]:
    """Rows of each owner in each pass of one step."""
    from foreword.training import loop

    passes: list[dict[str, int]] = []
    backward = loop._backward

    def noted(base: Any, trainers: Any, objective: Any, part: Any, *more: Any) -> Any:
        passes.append(dict(Counter(trainers[index].owner for index, _ in part)))
        return backward(base, trainers, objective, part, *more)

    monkeypatch.setattr(loop, "_backward", noted)
    examples = {name: random_examples(4, seed=n, shortest=9, longest=9) for n, name in enumerate("ab")}
    train_many(base, examples, length=2, steps=1, batch_size=4, **options)
    return passes


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [{"a": 4, "b": 4}]),
        ({"isolated": True}, [{"a": 4}, {"b": 4}]),
        ({"max_batch_tokens": 60}, [{"a": 3}, {"a": 1, "b": 2}, {"b": 2}]),
        ({"isolated": True, "max_batch_tokens": 60}, [{"a": 3}, {"a": 1}, {"b": 3}, {"b": 1}]),
        ({"gradient_accumulation": 2}, [{"a": 2, "b": 2}] * 2),
        ({"gradient_accumulation": 2, "isolated": True}, [{"a": 2}] * 2 + [{"b": 2}] * 2),
        ({"gradient_accumulation": 2, "max_batch_tokens": 60}, [{"a": 2, "b": 1}, {"b": 1}] * 2),
        (
            {"gradient_accumulation": 2, "max_batch_tokens": 20, "isolated": True},
            [{"a": 1}] * 4 + [{"b": 1}] * 4,
        ),
    ],
)
def test_what_divides_passes_works_together(
    tiny_base: BaseModel,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    expected: list[dict[str, int]],
) -> None:
    assert passes_of(tiny_base, monkeypatch, **options) == expected


def test_isolated_owners_in_small_passes_do_not_depend_on_each_other(tiny_base: BaseModel) -> None:
    options = {**OPTIONS, "isolated": True, "max_batch_tokens": 30}
    together = train_many(tiny_base, OWNERS, **options)
    for owner, examples in OWNERS.items():
        assert same(together[owner], train_many(tiny_base, {owner: examples}, **options)[owner])
        assert close(together[owner], train(tiny_base, examples, **OPTIONS))
