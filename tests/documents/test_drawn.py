"""Conversations drawn from a text: answers that stand in it, every part of it, and the same by the same seed."""

from __future__ import annotations

import collections
from pathlib import Path

import pytest

from foreword.documents.chunks import sentences, split
from foreword.documents.drawn import drawn

EXAMPLES = Path(__file__).parents[2] / "examples" / "documents"


def plain(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("name", ["contract", "letters", "price-list"])
def test_every_answer_stands_in_the_chunk_it_is_about(name: str) -> None:
    text = (EXAMPLES / f"{name}.md").read_text(encoding="utf-8")
    chunks = split(text, lambda part: len(part.split()), 100)
    found = drawn(chunks, 300)
    assert len(found) == len({(each.source, each.target) for each in found}) == 300
    for each in found:
        assert each.chunk is not None
        assert each.target
        # A second sentence may stand behind what was between them in a list.
        first = plain(each.target).split("- ")[0].rstrip()
        # Short answers begin with a capital and have a full stop of their own.
        assert first[:60].removesuffix(".").lower() in plain(chunks[each.chunk].text).lower(), each
    told = {
        number
        for number, chunk in enumerate(chunks)
        if any(len(s.split()) > 4 for s in sentences(chunk.text))
    }
    assert {each.chunk for each in found} >= told


def test_text_without_spaces_has_conversations() -> None:
    text = "大门早上九点打开。钥匙在先生那里！中午它关上，有人敲钟。"
    found = drawn(split(text, len, 20), 6)
    assert len(found) == 6
    assert all(each.target[:4] in text for each in found)


def test_kinds_share_the_text_and_tables_are_asked_by_row_and_column() -> None:
    table = "# Prices\n\n| What | Price |\n|---|---|\n| Rope | 4.20 |\n| Tar | 1.10 |\n"
    (chunk,) = split(table, len, 1000)
    found = {(each.target, each.kind) for each in drawn([chunk], 100)}
    assert {("4.20.", "cell"), ("1.10.", "cell")} <= found
    prose = split("Mr. Ott left Harbin on 4 May. He took 30 boxes of Rum with him.", len, 1000)
    kinds = collections.Counter(each.kind for each in drawn(prose, 40))
    assert set(kinds) == {"continue", "words", "question", "cloze", "about"}


def test_a_few_words_of_a_sentence_ask_for_it() -> None:
    text = "The lantern of the western pier burns whale oil until dawn."
    found = [each for each in drawn(split(text, len, 1000), 80) if each.kind == "words"]
    assert {each.target for each in found} == {text}
    asked = " ".join(str(each.source) for each in found)
    assert all(word in asked for word in ("lantern", "western", "pier", "burns", "whale", "dawn"))
    assert "until" not in asked
    orders = {str(each.source).find("pier") < str(each.source).find("lantern") for each in found}
    assert orders == {True, False}


def test_a_sentence_is_cut_anywhere() -> None:
    text = "one two three four five six seven eight nine ten eleven twelve"
    chunks = split(text, len, 1000)
    found = [each for seed in range(8) for each in drawn(chunks, 80, seed) if each.kind == "continue"]
    answers = {each.target.split()[0] for each in found}
    assert {"two", "seven", "eleven"} <= answers


def test_the_seed_decides_and_a_short_text_gives_few() -> None:
    chunks = split("The gate opens at nine. It closes at noon.", len, 1000)
    assert drawn(chunks, 1000, 3) == drawn(chunks, 1000, 3) != drawn(chunks, 1000, 4)
    assert 4 < len(drawn(chunks, 1000)) < 200
    assert drawn(split("Nine", len, 100), 10) == []


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("- It opens at noon and holds twelve barrels.", "twelve"),
        ("The call raises `NoRoom` before it ends.", "`NoRoom`"),
        ("Wicks cost 0.95 and more.", "0.95"),
        ("Nobody pays within 25 days.", "25 days"),
        ("The mill is kept by Ada Orme.", "Ada Orme"),
    ],
)
def test_a_gap_stands_for_a_name_a_number_or_a_quotation(text: str, missing: str) -> None:
    found = {each.target for each in drawn(split(text, len, 1000), 60) if each.kind == "cloze"}
    assert found == {missing[:1].upper() + missing[1:] + "."}


def test_questions_ask_for_a_name_or_a_number_in_its_place_and_by_words_around_it() -> None:
    (chunk,) = split("The mill at Orle grinds 40 sacks of barley for Ada Orme every week.", len, 1000)
    found = [each for each in drawn([chunk], 200) if each.kind == "question"]
    assert {each.target for each in found} == {"Orle.", "40 sacks.", "Ada Orme."}
    asked = {str(each.source) for each in found if each.target == "40 sacks."}
    assert "The mill at Orle grinds what of barley for Ada Orme every week?" in asked
    by_words = {each for each in asked if each.split()[0].strip(":") in ("How", "When", "What")}
    assert any("barley" in each and "mill" in each for each in by_words)
    assert not any("40" in each or "sacks" in each for each in asked)
    counted = drawn(split("Of the barrels, Nils keeps three in the shed.", len, 1000), 200)
    assert any("keeps how many in the shed" in str(each.source) for each in counted)


@pytest.mark.parametrize("name", ["Adam Smith", "Elizabeth", "Tennessee", "Sevenoaks"])
def test_a_name_that_ends_or_begins_like_a_number_is_a_name(name: str) -> None:
    text = f"The mill by the old bridge is kept by {name} all winter."
    found = [each for each in drawn(split(text, len, 1000), 200) if each.target == f"{name}."]
    asked = {str(each.source) for each in found if each.kind == "question"}
    assert asked
    assert not any(word in each for each in asked for word in ("How ", "When", "number"))
    assert not any(" which all winter" in each for each in asked) or " " in name
