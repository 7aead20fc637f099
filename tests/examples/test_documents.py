"""The example documents: every question can be answered from its document, and the two splits are fair."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

DOCUMENTS = Path(__file__).parents[2] / "examples" / "documents"
NAMES = sorted(path.name.removesuffix(".questions.jsonl") for path in DOCUMENTS.glob("*.questions.jsonl"))
SPLITS = ("dev", "test")

Question = dict[str, Any]


def document(name: str) -> str:
    return (DOCUMENTS / f"{name}.md").read_text(encoding="utf-8")


def questions(name: str) -> list[Question]:
    lines = (DOCUMENTS / f"{name}.questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def sections(name: str) -> list[tuple[str, str]]:
    """Headings, with the text from each to the next; a `#` inside a block of code is no heading."""
    found: list[tuple[str, list[str]]] = []
    in_code = False
    for line in document(name).splitlines():
        in_code ^= line.startswith("```")
        if not in_code and re.match(r"#+ ", line):
            found.append((line.lstrip("#").strip(), []))
        else:
            found[-1][1].append(line)
    return [(heading, "\n".join(lines).strip()) for heading, lines in found]


def places(name: str, quotation: str) -> set[str]:
    return {heading for heading, text in sections(name) if quotation in text}


def needs_two_sections(name: str, question: Question) -> bool:
    """Whether no one section holds all of its evidence."""
    return not set.intersection(*(places(name, quotation) for quotation in question["evidence"]))


def plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def repeated(texts: list[str]) -> list[str]:
    return [text for text, count in Counter(map(plain, texts)).items() if count > 1]


every_document = pytest.mark.parametrize("name", NAMES)


def test_every_document_has_its_questions_and_its_summary_and_the_other_way_round():
    assert NAMES
    files = {path.name for path in DOCUMENTS.glob("*.md")} - {"README.md"}
    assert files == {f"{name}{ending}" for name in NAMES for ending in (".md", ".summary.md")}


@every_document
def test_a_document_has_950_to_2200_words_under_distinct_headings(name):
    assert 950 <= len(document(name).split()) <= 2200
    headings = [heading for heading, _ in sections(name)]
    assert not repeated(headings)


@every_document
def test_a_question_has_the_fields_of_the_format(name):
    for question in questions(name):
        assert list(question) == ["question", "answer", "evidence", "split", "section"]
        assert question["question"].endswith("?")
        assert 1 <= len(question["answer"].split()) <= 20, question["answer"]
        assert question["evidence"]
        assert all(map(str.strip, question["evidence"]))
        assert question["split"] in SPLITS


@every_document
def test_there_are_20_dev_and_20_test_questions(name):
    assert Counter(question["split"] for question in questions(name)) == {"dev": 20, "test": 20}


@every_document
def test_at_least_5_questions_of_each_split_need_passages_of_two_sections(name):
    counts = Counter(q["split"] for q in questions(name) if needs_two_sections(name, q))
    assert all(counts[split] >= 5 for split in SPLITS), counts


@every_document
def test_evidence_is_quoted_exactly_and_the_section_is_that_of_the_first_quotation(name):
    for question in questions(name):
        for quotation in question["evidence"]:
            assert places(name, quotation), quotation
        assert question["section"] in places(name, question["evidence"][0]), question["question"]


@every_document
def test_no_question_and_no_answer_comes_twice(name):
    asked = questions(name)
    assert not repeated([question["question"] for question in asked])
    assert not repeated([question["answer"] for question in asked])


@every_document
def test_dev_and_test_questions_share_no_quotation(name):
    dev, test = (
        {
            quotation
            for question in questions(name)
            if question["split"] == split
            for quotation in question["evidence"]
        }
        for split in SPLITS
    )
    assert not dev & test


@every_document
def test_every_section_is_asked_about(name):
    asked = {
        heading for q in questions(name) for quotation in q["evidence"] for heading in places(name, quotation)
    }
    _title, *below = sections(name)
    assert {heading for heading, text in below if text} <= asked


@every_document
@pytest.mark.parametrize("split", SPLITS)
def test_each_split_asks_about_every_quarter_of_the_document(name, split):
    text = document(name)
    starts = [
        text.index(quotation) for q in questions(name) if q["split"] == split for quotation in q["evidence"]
    ]
    assert {4 * start // len(text) for start in starts} == {0, 1, 2, 3}


def test_a_summary_has_a_tenth_of_its_document_s_tokens_at_most_and_more_than_a_fifteenth(smollm_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm_path)

    def tokens(text: str) -> int:
        # As in a prefix, where the document stands behind this.
        ids = tokenizer(f"<|im_start|>system\n{text.strip()}", add_special_tokens=False)["input_ids"]
        return len(ids)

    for name in NAMES:
        summary = (DOCUMENTS / f"{name}.summary.md").read_text(encoding="utf-8")
        whole = tokens(document(name))
        assert whole / 15 < tokens(summary) <= round(whole / 10), name
