"""Measuring: entries are counted as the official scripts count them, and written for once a source."""

from __future__ import annotations

import pytest

from foreword import BaseModel
from foreword.evaluation import evaluate
from foreword.examples import Entry, Example
from foreword.research.baselines.protocol import EvaluatedModel
from foreword.research.experiments import measure as measuring
from foreword.research.experiments.measure import measure
from support.stand_ins import random_prefix

ENTRIES = [
    Entry("abc", ("abc def", "a b"), "Food"),
    Entry("hello", ("good day",), "Food"),
    Entry("abc", ("something else", "x", "y", "z"), "City"),
    Entry(({"role": "user", "content": "abc"},), ("hi",)),
]


def test_entries_of_one_source_are_scored_apart_as_evaluate_does(tiny_base: BaseModel) -> None:
    prefix, texts = random_prefix(tiny_base, 3), ENTRIES[:3]
    figures, predictions = measure(EvaluatedModel(tiny_base, prefix), texts, {"max_new_tokens": 8})
    found = evaluate(tiny_base, texts, prefix, max_new_tokens=8)
    assert [(p.source, p.references, p.category) for p in predictions] == [
        (e.source, e.references, e.category) for e in texts
    ]
    assert [p.text for p in predictions] == [p.text.strip() for p in found.outputs]
    assert figures["chrF"] == pytest.approx(found.chrf)
    merged = [Entry("abc", (*texts[0].references, *texts[2].references)), texts[1]]
    other, _ = measure(EvaluatedModel(tiny_base, prefix), merged, {"max_new_tokens": 8})
    assert other["chrF"] != figures["chrF"]


def test_every_source_is_written_for_once(tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def counted(base: BaseModel, sources: list[object], *more: object, **options: object) -> list[str]:
        asked.extend(sources)
        return [f"text {number}" for number in range(len(sources))]

    monkeypatch.setattr(measuring, "generate", counted)
    monkeypatch.setattr(measuring, "token_loss", lambda *_, **__: _Loss())
    _, predictions = measure(EvaluatedModel(tiny_base), ENTRIES, {})
    assert asked == ["abc", "hello", ENTRIES[3].source]  # messages that say "abc" are another source
    assert [p.text for p in predictions] == ["text 0", "text 1", "text 0", "text 2"]


class _Loss:
    mean = 1.0


def test_the_loss_is_of_the_first_references_of_every_entry(tiny_base: BaseModel) -> None:
    texts = ENTRIES[:3]
    figures, _ = measure(EvaluatedModel(tiny_base), texts, {"max_new_tokens": 2})
    first = [Example(entry.source, each) for entry in texts for each in entry.references[:3]]
    assert figures["loss"] == pytest.approx(evaluate(tiny_base, first, text=False).loss)
