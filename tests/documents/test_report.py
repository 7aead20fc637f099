"""The report of a document's prefix: by section, of short answers, past the window, bounded, as a page."""

from __future__ import annotations

import dataclasses
import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from foreword import BaseModel, Example, compile_document, generate
from foreword.documents.chunks import Chunk
from foreword.documents.exact import document_ids, document_template
from foreword.documents.report import (
    BEGINNING,
    Question,
    answered,
    harm_answers,
    is_right,
    measured,
    placed,
    read_questions,
    recovered,
)
from foreword.documents.report_page import report_page
from foreword.documents.settings import DocumentSettings
from foreword.documents.studies import chunks_of
from foreword.errors import BadExamples, HarmExceeded, WindowExceeded
from foreword.prefix_file import MAX_REPORT_BYTES
from support.few_prompts import take_few_prompts
from support.stand_ins import byte_tokenizer, random_prefix, tiny_llama

TEXT = "The gate opens at nine. Mr. Ott has the key.\n\n# Rules\n\nNo dogs in the Garden, says Mrs. Lund."
QUICK: dict[str, Any] = {"steps": 2, "batch_size": 4, "draw": 32, "chunk_tokens": 60, "length": 8}
QUESTIONS = [
    Question("When does the gate open?", "At nine.", section="Gate"),
    Question("Who says so of dogs?", "Mrs. Lund", section="Rules"),
    Question("Who has the key?", "Mr. Ott", section="Gate"),
]


@pytest.fixture
def base() -> BaseModel:
    return BaseModel(tiny_llama(max_position_embeddings=256), byte_tokenizer(), name="tiny-llama")


@pytest.fixture(autouse=True)
def _few_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    take_few_prompts(monkeypatch)


def test_sections_are_the_means_over_their_own_answers(base: BaseModel) -> None:
    prefix, document = random_prefix(base, 3), random_prefix(base, 5, seed=1)
    found = recovered(base, prefix, document, QUESTIONS, [str(each.section) for each in QUESTIONS])
    assert {name: each.answers for name, each in found.items()} == {"": 3, "Gate": 2, "Rules": 1}
    losses = base.token_losses(QUESTIONS, prefix)
    assert found["Rules"].with_prefix == pytest.approx(float(losses[1].mean()), rel=1e-5)
    gate = torch.cat([losses[0], losses[2]])
    assert found["Gate"].with_prefix == pytest.approx(float(gate.mean()), rel=1e-5)
    bare = torch.cat(base.token_losses(QUESTIONS, template=prefix.template))
    assert found[""].without == pytest.approx(float(bare.mean()), rel=1e-5)


def test_questions_stand_in_the_section_with_their_words() -> None:
    base = BaseModel(tiny_llama(), byte_tokenizer(), name="tiny-llama")
    chunks = [Chunk(TEXT[:44], "", 0, 44), Chunk(TEXT[46:], "Rules", 46, len(TEXT))]
    asked = [Example("Are dogs allowed in the Garden?", "No"), Example("When does the gate open?", "At nine")]
    found = placed(base, [*asked, Question("Dogs?", "No", section="Mine", chunk=0)], chunks)
    assert [each.section for each in found] == ["Rules", BEGINNING, "Mine"]
    assert [each.chunk for each in found] == [1, 0, 0]
    assert [each.short for each in found] == [True, True, False]


def test_sections_with_equal_headings_are_told_apart(base: BaseModel) -> None:
    text = "# Rules\n\nNo dogs in the Garden.\n\n# Fees\n\nNine euros.\n\n# Rules\n\nNo cats in the Hall."
    chunks = chunks_of(base, text, DocumentSettings(chunk_tokens=60))
    asked = [Question("Dogs?", "No dogs in the Garden."), Question("Cats?", "No cats in the Hall.")]
    assert [each.section for each in placed(base, asked, chunks)] == ["Rules", "Rules (2)"]


@pytest.mark.parametrize(
    ("method", "advice"),
    [("exact", "leave parts of the document out"), ("matched", "method studied"), ("studied", "fewer steps")],
)
def test_what_is_advised_against_harm_depends_on_the_method(
    base: BaseModel, method: Any, advice: str
) -> None:
    options: dict[str, Any] = {"exact": {}, "matched": {"length": 8, "draw": 32}, "studied": QUICK}[method]
    with pytest.raises(HarmExceeded, match=advice):
        compile_document(base, TEXT, method=method, max_harm=0.0, **{"chunk_tokens": 60, **options})


def test_an_answer_counts_when_the_right_one_stands_in_it(base: BaseModel) -> None:
    prefix = random_prefix(base, 3)
    (text,) = generate(base, ["abc"], prefix, max_new_tokens=16)
    words = "".join(letter if letter.isalnum() else " " for letter in text).split()
    right, wrong = Example("abc", words[0] + " "), Example("abc", "zzzzqqqq")
    assert answered(base, prefix, [right, wrong], prefix.template) == 0.5


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        ("It was in 2025.", "5", False),
        ("I do not know.", "No", False),
        ("No, never.", "no.", True),
        ("Mr. Ott has it", "Mr Ott", True),
        ("anything", "–", False),
        ("大门九点打开", "九点", True),
    ],
)
def test_an_answer_is_right_word_by_word(text: str, target: str, expected: bool) -> None:
    assert is_right(text, target) == expected


def test_sections_of_a_report_are_in_the_documents_order(base: BaseModel) -> None:
    prefix = random_prefix(base, 3)
    asked = [Question("a?", "b", section=f"Part {n}", chunk=n) for n in (0, 1, 3, 2, 4)]
    report = measured(base, prefix, asked, prefix, lambda number: prefix, 9)
    assert [each["section"] for each in report["sections"]] == [f"Part {n}" for n in range(5)]


def test_answers_that_harm_is_measured_on_do_not_keep_a_base() -> None:
    base = BaseModel(tiny_llama(), byte_tokenizer(), name="tiny-llama")
    assert harm_answers(base, base.template, 2) is harm_answers(base, base.template, 2)
    kept = weakref.ref(base)
    del base
    gc.collect()
    assert kept() is None


def test_a_document_longer_than_the_window_is_measured_against_its_chunks(base: BaseModel) -> None:
    text = "\n\n".join(
        f"# Part {n}\n\nRoom {n} belongs to Mr. Ott{n} and opens at {n} in May." for n in range(12)
    )
    template, settings = document_template(base), DocumentSettings(**QUICK)
    assert len(document_ids(base, template, text)) > base.max_positions  # type: ignore[operator]
    questions = [Example("Who has Room 7?", "Mr. Ott7"), Example("When does Room 3 open?", "At 3 in May.")]
    prefix = compile_document(base, text, questions=questions, **QUICK)
    report = prefix.report
    assert (report["reference"], report["harm_of_document"]) == ("chunk", None)
    chunks = [each.text for each in chunks_of(base, text, settings)]
    alone = dataclasses.replace(base.raw_template, end=template.end)
    losses = []
    for number, question in zip((7, 3), questions, strict=True):
        (chunk,) = (each for each in chunks if f"Room {number} " in each)
        whole = Example(f"{chunk}\n\n{question.source}\n", question.target)
        losses += base.token_losses([whole], template=alone)
    assert report["with_document"] == pytest.approx(float(torch.cat(losses).mean()), abs=2e-4)


def test_what_has_no_room_in_the_window_is_refused_before_training(base: BaseModel) -> None:
    with pytest.raises(WindowExceeded, match="question 2 with its answer does not fit"):
        compile_document(
            base, TEXT, questions=[Example("Who?", "Ott"), Example("Who?", "Ott " * 80)], **QUICK
        )
    with pytest.raises(WindowExceeded, match="no conversations fit"):
        compile_document(base, TEXT * 5, **{**QUICK, "length": 253})


def test_a_report_says_what_the_prefix_costs_and_stays_in_its_bounds(base: BaseModel) -> None:
    name = '"\\"' * 60
    text = "\n\n".join(f"Room {n} belongs to Mr. Ott and opens in May." for n in range(4))
    questions = [Question(f"Room {n}?", "May", section=f"{n} {name}", chunk=0) for n in range(30)]
    prefix = compile_document(base, text, questions=questions, **QUICK, unrelated=0.0)
    report = prefix.report
    assert (len(report["sections"]), report["sections_left_out"]) == (20, 10)
    assert len(json.dumps(dict(report), ensure_ascii=False).encode()) <= MAX_REPORT_BYTES
    prefix.to_bytes()
    per_token = 3 * 2 * 2 * 8 * 4  # layers, keys and values, heads, head size, bytes of a number
    assert (report["length"], report["cache_bytes"]) == (8, 8 * per_token)
    tokens = len(document_ids(base, document_template(base), text))
    assert (report["tokens"], report["document_cache_bytes"]) == (tokens, tokens * per_token)


def test_more_harm_than_allowed_has_the_report(base: BaseModel) -> None:
    with pytest.raises(HarmExceeded, match=r"expected at most 0\. the prefix was not kept") as told:
        compile_document(base, TEXT, max_harm=0.0, **QUICK)
    assert told.value.report["harm"] > told.value.report["max_harm"] == 0


@pytest.mark.parametrize("extra", [{}, {"harm_of_document": None, "reference": "chunk", "answered": None}])
def test_the_page_takes_nothing_from_elsewhere_and_escapes_names(extra: dict[str, Any]) -> None:
    losses = {"answers": 2, "without": 2.0, "with_prefix": 1.5, "with_document": 1.0}
    name = "<script>alert('x')</script> & " + "long " * 20
    share = {"recovered_share": 0.5}
    report = {
        **(losses | share),
        "reference": "document",
        "sections": [
            {"section": name} | losses | share,
            {"section": "b"} | losses | {"recovered_share": None},
        ],
        "sections_left_out": 3,
        "answered": {"questions": 4, "without": 0.0, "with_prefix": 0.5, "with_document": 0.75},
        "harm": 0.9,
        "harm_of_document": 0.2,
        "max_harm": 0.5,
        "length": 8,
        "tokens": 80,
        "bytes": 2048,
        "cache_bytes": 2048,
        "document_cache_bytes": 20480,
        **extra,
    }
    page = report_page(report, document="<a> & b.md", base="tiny")
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#x27;x&#x27;)" in page
    assert "&lt;a&gt; &amp; b.md" in page
    assert not any(word in page for word in ("http:", "https:", "src=", "href=", "url(", "@import"))
    assert "Above the limit" in page
    assert page.count("<svg") == 1
    assert ("75%" in page) == (report["answered"] is not None)


def test_questions_are_read_under_the_usual_names(tmp_path: Path) -> None:
    def read(name: str, content: str) -> list[tuple[Any, ...]]:
        (tmp_path / name).write_text(content)
        return [(each.source, each.target, each.section) for each in read_questions(tmp_path / name)]

    assert read("a.jsonl", '{"source": "q", "target": "a", "owner": "me"}\n') == [("q", "a", None)]
    assert read("b.jsonl", '{"question": "q", "answer": "a", "section": "s"}\n') == [("q", "a", "s")]
    assert read("c.csv", "question,answer\nq,a\n") == [("q", "a", None)]
    assert read("d.csv", "source,target,section\nq,a,s\n") == [("q", "a", "s")]
    partly = '{"question": "q", "answer": "a"}\n{"question": "r", "answer": "b", "section": "s"}\n'
    assert read("g.jsonl", partly) == [("q", "a", None), ("r", "b", "s")]
    with pytest.raises(BadExamples, match="line 2: no field 'answer'"):
        read("h.jsonl", '{"question": "q", "answer": "a"}\n{"question": "q", "answr": "a"}\n')
    with pytest.raises(BadExamples, match="found the fields 'x'"):
        read("e.jsonl", '{"x": 1}\n')
    with pytest.raises(BadExamples, match="line 2"):
        read("f.jsonl", '{"question": "q", "answer": "a"}\nrubbish\n')
