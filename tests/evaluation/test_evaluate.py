"""Figures of a whole set of examples, against computations by hand."""

from __future__ import annotations

import importlib
import math
from importlib import import_module
from typing import Any

import pytest
import sacrebleu
import torch

from foreword import BaseModel, Example, Template, generate
from foreword.errors import BadExamples, WindowExceeded
from foreword.evaluation import TokenLoss, evaluate, token_loss
from support.by_hand import layers_of, token_losses
from support.stand_ins import random_examples, random_prefix


def test_loss_is_the_mean_over_target_tokens_computed_by_hand(tiny_base: BaseModel) -> None:
    prefix = random_prefix(tiny_base, 4)
    examples = random_examples(9, longest=40)
    by_row = []
    for example in examples:
        source = tiny_base.template.source_ids(tiny_base.tokenizer, example.source)
        target = tiny_base.template.target_ids(tiny_base.tokenizer, example.target)
        with torch.no_grad():
            by_row.append(token_losses(tiny_base.model, source, target, layers_of(prefix)))
    found = token_loss(tiny_base, examples, prefix)
    assert found.tokens == sum(len(example.target) + 1 for example in examples)
    assert found.mean == pytest.approx(float(torch.cat(by_row).mean()), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.mean))
    assert found.mean != pytest.approx(float(torch.stack([row.mean() for row in by_row]).mean()), rel=1e-4)


def test_the_number_of_parts_changes_nothing(tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = random_examples(9)
    whole = token_loss(tiny_base, examples)
    module = importlib.import_module("foreword.evaluation.evaluate")  # a function has that name, too
    monkeypatch.setattr(module, "EXAMPLES_BETWEEN_REPORTS", 2)
    reports: list[tuple[int, int]] = []
    parts = token_loss(tiny_base, examples, on_progress=lambda *report: reports.append(report))
    assert parts.mean == pytest.approx(whole.mean, rel=1e-6)
    assert reports == [(2, 9), (4, 9), (6, 9), (8, 9), (9, 9)]


def test_a_loss_too_large_for_a_perplexity_is_infinite() -> None:
    assert TokenLoss(1e4, 1).perplexity == math.inf


def test_repeated_sources_are_generated_once_and_scored_against_all_targets(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = random_prefix(tiny_base, 4)
    examples = [Example("abc", "one two"), Example("xyz", "three"), Example("abc", "four five six")]
    asked: list[Any] = []

    def counting(base: Any, sources: Any, *more: Any, **options: Any) -> list[str]:
        asked.extend(sources)
        return generate(base, sources, *more, **options)

    monkeypatch.setattr(import_module("foreword.evaluation.evaluate"), "generate", counting)
    found = evaluate(tiny_base, examples, prefix, max_new_tokens=12, batch_size=1)
    assert asked == ["abc", "xyz"]
    assert (found.examples, found.sources, found.tokens) == (3, 2, 8 + 6 + 14)
    texts = generate(tiny_base, ["abc", "xyz"], prefix, max_new_tokens=12)
    assert [output.text for output in found.outputs] == texts
    assert [output.references for output in found.outputs] == [("one two", "four five six"), ("three",)]
    columns = [["one two", "three"], ["four five six", None]]
    assert found.bleu == sacrebleu.corpus_bleu(texts, columns).score
    assert found.chrf == sacrebleu.corpus_chrf(texts, columns).score


def test_batches_change_no_text(tiny_base: BaseModel) -> None:
    examples = random_examples(11)
    one, many = (
        evaluate(tiny_base, examples, random_prefix(tiny_base, 4), max_new_tokens=6, batch_size=size)
        for size in (1, 32)
    )
    assert one.outputs == many.outputs


def test_the_base_alone_can_be_measured_under_any_template(tiny_base: BaseModel) -> None:
    examples = random_examples(3)
    template = Template(separator=" => ", end="<end>")
    found = evaluate(tiny_base, examples, template=template, text=False)
    expected = torch.cat(tiny_base.token_losses(examples, template=template)).mean()
    assert found.loss == pytest.approx(float(expected), rel=1e-6)
    assert found.loss != pytest.approx(evaluate(tiny_base, examples, text=False).loss)
    assert (found.bleu, found.chrf, found.outputs, found.signatures) == (None, None, (), {})


def test_nothing_is_cut_and_nothing_is_measured_on_nothing(tiny_base: BaseModel) -> None:
    with pytest.raises(WindowExceeded, match=r"example 70 has 302 tokens; 128 fit"):
        evaluate(tiny_base, [*random_examples(70), Example("a" * 300, "b")])
    with pytest.raises(BadExamples, match="no examples"):
        evaluate(tiny_base, [])


def test_sampled_texts_do_not_depend_on_the_batch_size(tiny_base: BaseModel) -> None:
    examples = random_examples(9)
    options = {"temperature": 1.5, "seed": 3, "max_new_tokens": 6}
    one, two = (evaluate(tiny_base, examples, batch_size=size, **options) for size in (1, 4))  # type: ignore[arg-type]
    assert [o.text for o in one.outputs] == [o.text for o in two.outputs]
