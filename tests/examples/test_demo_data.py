"""The demo's data keeps the rules of its card, and its dev side is unseen."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from foreword.examples import Example, read_examples

DEMO = Path(__file__).parents[2] / "examples" / "demo"
CARD = re.compile(
    r"\[(DAMAGED|LATE|WRONG|MISSING|CHANGE|RETURN|QUESTION|PRAISE)\] (order \d{4}|no order)"
    r" · ([^·→:]+): ([^·→:]+) → (replace|trace|swap|send rest|update|refund|answer|nothing|repair|cancel)"
    r" · (no date|by [^·]+) · mood: (calm|happy|worried|annoyed|angry)"
)


def demo(name: str) -> list[Example]:
    return read_examples(DEMO / name)


def parts(example: Example) -> tuple[str, ...]:
    match = CARD.fullmatch(example.target)
    assert match, example.target
    return match.groups()


def words(text: object) -> list[str]:
    return re.findall(r"\w+", re.sub(r"\d{4}", "N", str(text).lower()))


@pytest.mark.parametrize(("name", "each"), [("train.jsonl", 45), ("dev.jsonl", 6)])
def test_every_target_is_a_card_and_tags_are_balanced(name, each):
    assert set(Counter(parts(example)[0] for example in demo(name)).values()) == {each}


@pytest.mark.parametrize("name", ["train.jsonl", "dev.jsonl"])
def test_order_item_and_deadline_stand_in_the_message(name):
    for example in demo(name):
        _, order, item, what, _, deadline, _ = parts(example)
        if order == "no order":
            assert not re.search(r"\d{4}", str(example.source))
        else:
            assert order.removeprefix("order ") in str(example.source)
        said = set(words(example.source))
        assert set(words(item)) <= said
        assert set(words(what)) - {"not"} <= said  # "this not that" may be said in other words
        if deadline != "no date":
            assert set(words(deadline.removeprefix("by "))) <= said


def test_no_dev_message_and_no_dev_item_is_in_the_training_data():
    train, dev = demo("train.jsonl"), demo("dev.jsonl")
    assert len({tuple(words(e.source)) for e in train + dev}) == len(train) + len(dev)
    assert not {parts(e)[2].lower() for e in dev} & {parts(e)[2].lower() for e in train}


@pytest.mark.parametrize(("name", "each"), [("owners.jsonl", 24), ("owners.dev.jsonl", 6)])
def test_each_owner_has_a_style_of_its_own(name, each):
    styles = {
        "willow": r"Dear customer, we regret .+\. Yours faithfully, Willow",
        "anvil": r"PROBLEM: .+\. FIX: .+\. WHEN: .+\. COST: (none|postage)\.",
        "crumb": r"Oh crumbs! .+\? .+, pinky promise! 🥐",
    }
    examples = demo(name)
    assert Counter(example.owner for example in examples) == dict.fromkeys(styles, each)
    assert all(re.fullmatch(styles[str(e.owner)], e.target) for e in examples)


def test_owners_dev_messages_are_not_in_their_training_data():
    train, dev = demo("owners.jsonl"), demo("owners.dev.jsonl")
    assert not {e.source for e in train} & {e.source for e in dev}
    assert not {e.target for e in train} & {e.target for e in dev}
