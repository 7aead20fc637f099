"""The data of benchmarks/documents.py fits its documents, and its retrieval finds what a question names."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def parts() -> Iterator[SimpleNamespace]:
    """The benchmark's modules by what they are of; benchmarks are no part of the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        names = ("edits", "joining", "profiles", "rivals")
        found = {name: importlib.import_module(f"benchmarks.document_{name}") for name in names}
        yield SimpleNamespace(**found, documents=importlib.import_module("benchmarks.documents"))


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def test_summaries_are_no_documents_of_their_own(parts):
    assert len(parts.documents.NAMES) == 10
    assert all(
        (parts.documents.FOLDER / f"{name}.questions.jsonl").exists() for name in parts.documents.NAMES
    )


def test_each_edit_makes_its_answer_true_and_leaves_most_questions_alone(parts):
    text = (parts.documents.FOLDER / f"{parts.edits.DOCUMENT}.md").read_text(encoding="utf-8")
    for number, edit in enumerate(parts.edits.EDITS, 1):
        before, after = parts.edits.edited(text, number - 1), parts.edits.edited(text, number)
        new = set(words(edit.answer)) - set(words("up to of the in"))
        assert edit.replace in after
        assert edit.replace not in before
        assert new <= set(words(after)), edit.answer
        assert not new <= set(words(before)), edit.answer
    assert 12 <= len(parts.edits.unchanged_questions()) < 20


def test_the_answers_about_a_profile_stand_in_it_and_in_no_other(parts):
    assert len(parts.profiles.PROFILES) == 20
    texts = [" ".join(words(profile.text)) for profile in parts.profiles.PROFILES]
    for number, profile in enumerate(parts.profiles.PROFILES):
        for question in profile.questions:
            answer = " ".join(words(re.sub(r"^(At|From|It won) ", "", question.target)))
            assert [place for place, text in enumerate(texts) if answer in text] == [number], question


def test_a_profile_is_joined_with_others_each_once(parts):
    assert parts.joining.drawn(3, 1, 20, seed=0) == [3]
    found = parts.joining.drawn(3, 5, 20, seed=0)
    assert len(set(found)) == 5
    assert 3 in found
    assert found == parts.joining.drawn(3, 5, 20, seed=0) != parts.joining.drawn(3, 5, 20, seed=1)


def test_retrieval_puts_the_passage_first_that_has_the_question_s_rare_words(parts):
    text = "# A\n\nThe mill is old. The heron sleeps there.\n\n| Boat | Year |\n|---|---|\n| Tern | 1902 |\n"
    passages = parts.rivals.passages_of(text)
    assert passages == ["The mill is old.", "The heron sleeps there.", "Boat: Tern, Year: 1902"]
    for question, place in (("Where does the heron sleep?", 1), ("Which year has the Tern?", 2)):
        scores = parts.rivals.bm25(passages, question)
        assert scores.index(max(scores)) == place, question
