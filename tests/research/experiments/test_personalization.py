"""The experiment on a tiny model: what it computes, that it goes on, and that it mixes nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from foreword import BaseModel, Prefix, train, train_many
from foreword.errors import DamagedCheckpoint, UsageError
from foreword.evaluation import token_loss
from foreword.research.experiments import personalization as experiment
from foreword.research.experiments.personalization import (
    OwnersData,
    Recipe,
    choose_owners,
    left,
    run,
    settings_of,
)
from foreword.research.experiments.results import Results
from foreword.research.experiments.statistics import Column, contrast_own
from support.personal_data import owners_examples

RECIPE = Recipe(length=2, steps=12, batch_size=3, learning_rate=0.1)


@pytest.fixture
def data(tiny_base: BaseModel) -> OwnersData:
    return choose_owners(
        tiny_base,
        owners_examples("abc", count=6),
        owners_examples("abc", count=4, seed=1),
        owners=None,
        dev_rows=3,
        max_length=100,
    )


def open_results(base: BaseModel, data: OwnersData, folder: Path) -> Results:
    return Results(folder, experiment.EXPERIMENT, settings_of(base, data, RECIPE, 100))


def do(base: BaseModel, data: OwnersData, folder: Path, reports: list[Any] | None = None) -> list[Column]:
    def progress(*what: object) -> None:
        if reports is not None:
            reports.append(what)

    return run(base, data, RECIPE, folder, open_results(base, data, folder), progress)


def test_every_loss_is_that_of_its_prefix_on_its_owners_examples(
    tiny_base: BaseModel, data: OwnersData, tmp_path: Path
) -> None:
    columns = do(tiny_base, data, tmp_path)
    assert [column.owner for column in columns] == ["a", "b", "c"]
    shared = Prefix.load(tmp_path / "prefixes" / "shared.prefix")
    for column in columns:
        dev = data.dev[column.owner]
        expected = token_loss(tiny_base, dev)
        assert (column.examples, column.tokens) == (3, expected.tokens)
        assert column.none == pytest.approx(expected.mean, rel=1e-5)
        assert column.shared == pytest.approx(token_loss(tiny_base, dev, shared).mean, rel=1e-5)
        for owner in data.owners:
            prefix = Prefix.load(tmp_path / "prefixes" / f"@{owner}.prefix")
            assert column.under[owner] == pytest.approx(token_loss(tiny_base, dev, prefix).mean, rel=1e-5)


def test_prefixes_are_those_of_train_and_train_many(
    tiny_base: BaseModel, data: OwnersData, tmp_path: Path
) -> None:
    do(tiny_base, data, tmp_path)
    pooled = [example for owner in "abc" for example in data.train[owner]]
    expected = {
        "shared": train(tiny_base, pooled, **{**RECIPE.options, "steps": 36}),
        **{f"@{name}": p for name, p in train_many(tiny_base, data.train, **RECIPE.options).items()},
    }
    for name, prefix in expected.items():
        found = Prefix.load(tmp_path / "prefixes" / f"{name}.prefix")
        assert found.origin == prefix.origin
        assert found.origin.dev_loss is None
        for tensor in prefix.tensors:
            assert (found.tensors[tensor] - prefix.tensors[tensor]).abs().max() < 1e-4


def test_owners_who_write_differently_do_better_with_their_own(
    tiny_base: BaseModel, data: OwnersData, tmp_path: Path
) -> None:
    columns = do(tiny_base, data, tmp_path)
    assert [column.rank for column in columns] == [1, 1, 1]
    assert contrast_own(columns, "others").mean > 0.1


def test_a_stopped_run_does_what_is_left_and_ends_in_the_same_figures(
    tiny_base: BaseModel, data: OwnersData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = do(tiny_base, data, tmp_path / "whole")
    scored: list[str] = []
    score = experiment.score_column

    def score_then_stop(base: BaseModel, owner: str, *rest: Any) -> Column:
        if len(scored) == 1:
            raise KeyboardInterrupt
        scored.append(owner)
        return score(base, owner, *rest)

    monkeypatch.setattr(experiment, "score_column", score_then_stop)
    with pytest.raises(KeyboardInterrupt):
        do(tiny_base, data, tmp_path / "stopped")
    monkeypatch.setattr(
        experiment,
        "score_column",
        lambda base, owner, *rest: scored.append(owner) or score(base, owner, *rest),
    )
    reports: list[Any] = []
    assert do(tiny_base, data, tmp_path / "stopped", reports) == expected
    assert scored == ["a", "b", "c"]
    assert {what for what, _, _ in reports} == {"owners scored"}  # nothing was trained again


def test_owners_whose_prefix_is_there_are_not_trained_again(
    tiny_base: BaseModel, data: OwnersData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = open_results(tiny_base, data, tmp_path)
    trained: list[list[str]] = []

    def some(base: BaseModel, by_owner: Any, **options: Any) -> Any:
        trained.append(list(by_owner))
        kept = dict(list(by_owner.items())[:2]) if len(trained) == 1 else by_owner
        train_many(base, kept, **options)
        if len(trained) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "train_many", some)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_base, data, RECIPE, tmp_path, results, lambda *_: None)
    assert do(tiny_base, data, tmp_path)
    assert trained == [["a", "b", "c"], ["c"]]


def test_a_prefix_that_was_replaced_is_refused(
    tiny_base: BaseModel, data: OwnersData, tmp_path: Path
) -> None:
    do(tiny_base, data, tmp_path)
    folder = tmp_path / "prefixes"
    (folder / "@a.prefix").write_bytes((folder / "@b.prefix").read_bytes())
    with pytest.raises(DamagedCheckpoint, match=r"@a\.prefix has the digest \w{12}, but the run's results"):
        do(tiny_base, data, tmp_path)


def test_what_is_left_is_counted_in_prefixes_and_owners(
    tiny_base: BaseModel, data: OwnersData, tmp_path: Path
) -> None:
    results = open_results(tiny_base, data, tmp_path)
    assert left(data, results) == (3 + 1, 3)  # the shared prefix, too
    run(tiny_base, data, RECIPE, tmp_path, results, lambda *_: None)
    assert left(data, results) == (0, 0)


def test_everything_that_changes_the_figures_is_a_setting_of_the_run(
    tiny_base: BaseModel, data: OwnersData
) -> None:
    settings = settings_of(tiny_base, data, RECIPE, 100)
    changes: dict[str, Any] = {"length": 3, "steps": 5, "batch_size": 2, "learning_rate": 0.2, "seed": 1}
    for name, value in {**changes, "shared_steps": 7}.items():
        changed = settings_of(tiny_base, data, dataclasses.replace(RECIPE, **{name: value}), 100)
        assert changed[name] == value != settings[name]
    fewer = dataclasses.replace(data, dev={**data.dev, "a": data.dev["a"][:1]})
    assert settings_of(tiny_base, fewer, RECIPE, 100)["dev digest"] != settings["dev digest"]
    assert settings_of(tiny_base, data, RECIPE, 99) != settings


@pytest.mark.parametrize("changes", [{"shared_steps": 0}, {"steps": 0}, {"length": 0}, {"batch_size": -1}])
def test_a_recipe_out_of_range_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(changes))} is"):
        Recipe(**changes)
