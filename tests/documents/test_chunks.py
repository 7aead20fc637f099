"""A text in parts: nothing lost, nothing too long, headings and tables whole where they stand."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from foreword.documents.chunks import sections, sentences, split, tables

EXAMPLES = Path(__file__).parents[2] / "examples" / "documents"

TEXT = """# Harbour

Ships come at noon. They leave at four! Nobody waits.

## Prices

| What | Price |
|---|---|
| Rope | 4.20 |
| Tar | 1.10 |

- One rule: no smoking
- Another rule. Stay calm.

## Empty

## Last

The end."""


def words(text: str) -> int:
    return len(text.split())


def test_a_text_is_divided_at_its_sections() -> None:
    assert [(name, TEXT[start:end].splitlines()[0]) for name, start, end in sections(TEXT)] == [
        ("Harbour", "# Harbour"),
        ("Prices", "## Prices"),
        ("Last", "## Last"),
    ]
    assert sections("No heading.") == [("", 0, 11)]


@pytest.mark.parametrize("most", [15, 30, 1000])
@pytest.mark.parametrize("name", ["handbook", "table", "story"])
def test_chunks_have_all_words_in_order_and_no_more_than_fit(name: str, most: int) -> None:
    text = (EXAMPLES / f"{name}.md").read_text(encoding="utf-8")
    chunks = split(text, words, most)
    body = [line for line in text.splitlines() if not line.startswith("#")]
    kept = [text[chunk.start : chunk.end] for chunk in chunks]
    kept = [line for part in kept for line in part.splitlines() if not line.startswith("#")]
    assert " ".join(kept).split() == " ".join(body).split()
    assert all(words(text[chunk.start : chunk.end]) <= most for chunk in chunks)
    assert all(a.end <= b.start for a, b in itertools.pairwise(chunks))


def test_a_chunk_within_a_section_or_a_table_says_of_which() -> None:
    chunks = split(TEXT, words, 9)
    rule = next(chunk for chunk in chunks if "Another rule" in chunk.text)
    assert rule.section == "Prices"
    assert rule.text.startswith("# Prices\n\n")
    tar = next(chunk for chunk in chunks if "Tar" in chunk.text)
    assert "| What | Price |\n|---|---|\n" in tar.text


def test_text_without_spaces_is_divided_at_its_sentences_and_then_anywhere() -> None:
    text = "大门九点打开。钥匙在先生那里！「谁？」她问。" + "长" * 100
    chunks = split(text, len, 20)
    assert "".join(chunk.text for chunk in chunks) == text
    assert all(len(chunk.text) <= 20 for chunk in chunks)
    assert chunks[0].text == "大门九点打开。钥匙在先生那里！「谁？」"
    assert sentences("大门九点打开。钥匙在先生那里！") == ["大门九点打开。", "钥匙在先生那里！"]


def test_comments_in_code_are_no_headings() -> None:
    text = "# Use\n```sh\n# install it first\nmake\n```\n# Next\n```not``` code\n# Last\n~~~\n# then"
    assert [name for name, _, _ in sections(text)] == ["Use", "Next", "Last"]


def test_a_heading_has_no_marks_behind_it() -> None:
    assert [name for name, _, _ in sections("# One ##\na\n## Two\nb")] == ["One", "Two"]


def test_sentences_are_those_of_prose_and_items_of_lists() -> None:
    assert sentences(TEXT) == [
        "Ships come at noon.",
        "They leave at four!",
        "Nobody waits.",
        "- One rule: no smoking",
        "- Another rule.",
        "Stay calm.",
        "The end.",
    ]
    assert sentences("It takes 3.5 hours, e.g. a\nday in May. And so on.") == [
        "It takes 3.5 hours, e.g. a day in May.",
        "And so on.",
    ]


def test_tables_have_heads_and_rows() -> None:
    assert tables(TEXT) == [(["What", "Price"], [["Rope", "4.20"], ["Tar", "1.10"]])]
    assert tables("| not a table |\n\ntext") == []
