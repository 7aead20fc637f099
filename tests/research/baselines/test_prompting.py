"""Prompts: the same losses as if every row began with them."""

from __future__ import annotations

import pytest
import torch

from foreword import Example, generate
from foreword.errors import UsageError, WindowExceeded
from foreword.research.baselines.registry import METHODS
from support import by_hand
from support.baselines_settings import INSTRUCTION, roomy_base, rows_of, setting_of
from support.stand_ins import END, random_examples

ASKED = random_examples(3, seed=9)


def ids(base, text: str) -> list[int]:
    return base.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(("name", "choice"), [("zero-shot", {"form": "text"}), ("few-shot", {"shots": 2})])
def test_a_text_in_front_counts_as_if_each_row_began_with_it(name: str, choice: dict) -> None:
    base = roomy_base()
    inputs = setting_of(base, choice)
    front = INSTRUCTION + "\n"
    for shown in inputs.examples[: choice.get("shots", 0)]:
        front += f"{shown.source}\n{shown.target}{END}"
    adapter = METHODS[name].begin(inputs)
    losses = adapter.losses(rows_of(base, ASKED))
    expected = [
        by_hand.token_losses(base.model, ids(base, f"{front}{e.source}\n"), ids(base, e.target + END), None)
        for e in ASKED
    ]
    torch.testing.assert_close(losses, torch.cat(expected), rtol=1e-4, atol=1e-4)
    subject = adapter.finish()
    written = generate(base, [e.source for e in ASKED], subject.prefix, max_new_tokens=6)
    for text, example in zip(written, ASKED, strict=True):
        prompt = ids(base, f"{front}{example.source}\n")
        assert ids(base, text) == by_hand.greedy(base.model, prompt, None, 6, base.end_ids)


def test_a_chat_has_the_instruction_as_its_system_message() -> None:
    base = roomy_base()
    adapter = METHODS["zero-shot"].begin(setting_of(base, {"form": "chat"}))
    text = base.tokenizer.decode(adapter.template.source_ids(base.tokenizer, "abc"))
    assert text == f"s{INSTRUCTION}\nuabc\n"


def test_nothing_is_trained(tiny_base) -> None:
    for name in ("none", "zero-shot"):
        adapter = METHODS[name].begin(setting_of(tiny_base, METHODS[name].default))
        assert adapter.parameters == []
        assert adapter.finish().kept == 0


def test_demonstrations_beyond_the_window_are_refused(tiny_base) -> None:
    long = [Example("a" * 60, "b" * 60)]
    with pytest.raises(WindowExceeded, match="leaves no room"):
        METHODS["few-shot"].begin(setting_of(tiny_base, {"shots": 1}, rows=rows_of(tiny_base, long)))


def test_an_unknown_form_is_named(tiny_base) -> None:
    with pytest.raises(UsageError, match="form is 'song'; expected text or chat"):
        METHODS["zero-shot"].begin(setting_of(tiny_base, {"form": "song"}))
