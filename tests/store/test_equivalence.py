"""Declarations that prefixes of one base run on another: who made them, and what they are good for."""

from __future__ import annotations

import math
from typing import Any

import pytest

from foreword.errors import NotAllowed, UsageError
from foreword.store import PrefixStore

PLAIN, AWQ, GPTQ = "ab" * 32, "cd" * 32, "ef" * 32


def test_a_declaration_is_kept_with_who_made_it_and_what_it_costs(store: PrefixStore) -> None:
    facts = {"data": "0" * 64, "losses": [{"prefix": None, "trained": 2.0, "other": 2.5}]}
    made = store.declare_equivalent(PLAIN, AWQ, loss_difference=0.5, by="Ana Größer", facts=facts)
    store.declare_equivalent(PLAIN, GPTQ, loss_difference=0)
    first, second = store.equivalences()
    assert first == made
    assert (first.trained, first.other, first.declared_by, first.loss_difference, first.facts) == (
        PLAIN,
        AWQ,
        "Ana Größer",
        0.5,
        facts,
    )
    assert first.declared.endswith("+00:00")
    assert (second.declared_by, second.facts) == ("administrator", {})
    assert [(entry.action, entry.target) for entry in store.audit()] == [
        ("equate", f"{PLAIN} {GPTQ}"),
        ("equate", f"{PLAIN} {AWQ}"),
    ]


def test_it_holds_in_one_direction_and_only_for_the_two(store: PrefixStore) -> None:
    store.declare_equivalent(PLAIN, AWQ, loss_difference=0.1)
    store.declare_equivalent(AWQ, GPTQ, loss_difference=0.1)
    assert store.equivalents(AWQ) == {PLAIN}
    assert store.equivalents(PLAIN) == frozenset()
    assert store.equivalents(GPTQ) == {AWQ}  # nothing follows from two declarations together
    assert store.as_owner("alice", role="reader").equivalents(AWQ) == {PLAIN}


def test_a_later_declaration_stands_in_the_place_of_an_earlier_one(store: PrefixStore) -> None:
    store.declare_equivalent(PLAIN, AWQ, loss_difference=0.1, by="ana")
    store.declare_equivalent(PLAIN, AWQ, loss_difference=0.2, by="ben", facts={"targets": 7})
    (kept,) = store.equivalences()
    assert (kept.loss_difference, kept.declared_by, kept.facts) == (0.2, "ben", {"targets": 7})


def test_it_can_be_taken_back(sqlite_store: PrefixStore) -> None:
    sqlite_store.declare_equivalent(PLAIN, AWQ, loss_difference=0.1)
    sqlite_store.withdraw_equivalent(PLAIN, AWQ)
    assert sqlite_store.equivalences() == ()
    with pytest.raises(UsageError, match=r"store.equivalences\(\) has what is declared"):
        sqlite_store.withdraw_equivalent(PLAIN, AWQ)
    assert sqlite_store.audit()[0].action == "withdraw equivalence"


@pytest.mark.parametrize(
    ("trained", "other", "more", "said"),
    [
        ("qwen3-8b", AWQ, {}, "'qwen3-8b' is no fingerprint"),
        (PLAIN, AWQ.upper(), {}, "is no fingerprint"),
        (PLAIN, PLAIN, {}, "both bases have the weights"),
        (PLAIN, AWQ, {"loss_difference": math.nan}, "finite"),
        (PLAIN, AWQ, {"loss_difference": "0.1"}, "expected a number"),
        (PLAIN, AWQ, {"by": "  "}, "who declares it"),
        (PLAIN, AWQ, {"by": "x" * 161}, "161 characters"),
    ],
)
def test_what_is_no_declaration_is_refused(
    sqlite_store: PrefixStore, trained: str, other: str, more: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        sqlite_store.declare_equivalent(trained, other, **{"loss_difference": 0.1, **more})
    assert sqlite_store.equivalences() == ()


def test_only_administrators_declare(sqlite_store: PrefixStore) -> None:
    alice = sqlite_store.as_owner("alice")
    with pytest.raises(NotAllowed):
        alice.declare_equivalent(PLAIN, AWQ, loss_difference=0.1)
    sqlite_store.declare_equivalent(PLAIN, AWQ, loss_difference=0.1)
    with pytest.raises(NotAllowed):
        alice.withdraw_equivalent(PLAIN, AWQ)
    assert sqlite_store.equivalents(AWQ) == {PLAIN}
