"""Whose examples an experiment takes, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from foreword import BaseModel, Example
from foreword.errors import BadExamples, UsageError
from foreword.research.experiments.personalization import choose_owners
from support.personal_data import owners_examples

OPTIONS: dict[str, Any] = {"owners": None, "dev_rows": None, "max_length": 100}


def test_owners_come_by_name_each_with_their_own_examples(tiny_base: BaseModel) -> None:
    train, dev = owners_examples("cab", count=4), owners_examples("bca", count=3, seed=1)
    data = choose_owners(tiny_base, train, dev, **{**OPTIONS, "owners": 2, "dev_rows": 2})
    assert data.owners == ["a", "b"]
    assert data.train["b"] == [example for example in train if example.owner == "b"]
    assert data.dev["b"] == [example for example in dev if example.owner == "b"][:2]


def test_long_examples_are_left_out_and_counted_not_cut(tiny_base: BaseModel) -> None:
    # One token a letter, the newline between them, and an end token that is predicted but not read.
    fits, too_long = Example("x" * 9, "yyy", "a"), Example("x" * 10, "yyy", "a")
    rest = [Example("x", "y", "b")]
    data = choose_owners(
        tiny_base, [fits, too_long, *rest], [too_long, fits, *rest], **{**OPTIONS, "max_length": 13}
    )
    assert data.train["a"] == data.dev["a"] == [fits]
    assert data.too_long == (1, 1)


def test_owners_without_dev_examples_are_left_out_and_named(tiny_base: BaseModel) -> None:
    data = choose_owners(tiny_base, owners_examples("abz"), owners_examples("ab"), **OPTIONS)
    assert data.owners == ["a", "b"]
    assert data.unmeasured == ("z",)


@pytest.mark.parametrize(
    ("train", "dev", "changes", "error", "message"),
    [
        ("ab", "abz", {}, BadExamples, "1 owners have dev examples but no training examples, 'z' among them"),
        ("ab", "a", {}, BadExamples, "only 'a' has dev examples; expected at least 2"),
        ("ab", "ab", {"owners": 1}, UsageError, "owners is 1; expected at least 2"),
        ("ab", "ab", {"owners": 3}, UsageError, "owners is 3, but 2 have"),
        ("ab", "ab", {"dev_rows": 0}, UsageError, "dev_rows is 0"),
        ("ab", "ab", {"max_length": 5}, BadExamples, "no training example of 'a' has at most 5 tokens"),
    ],
)
def test_what_can_not_be_compared_is_refused(
    tiny_base: BaseModel,
    train: str,
    dev: str,
    changes: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        choose_owners(tiny_base, owners_examples(train), owners_examples(dev), **{**OPTIONS, **changes})


@pytest.mark.parametrize("which", ["training", "dev"])
def test_an_example_without_an_owner_is_refused(tiny_base: BaseModel, which: str) -> None:
    with_one, without = owners_examples("ab"), [*owners_examples("ab"), Example("x", "y")]
    train, dev = (without, with_one) if which == "training" else (with_one, without)
    with pytest.raises(BadExamples, match=f"{which} example 12 has no owner"):
        choose_owners(tiny_base, train, dev, **OPTIONS)
