"""Tasks by name, through a stand-in of the package `datasets` that hands out rows as the hub has them."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from foreword.errors import BadExamples, DownloadFailed, UsageError
from foreword.evaluation import TASKS, fetch_task
from foreword.examples import Entry

ROWS: dict[str, list[dict[str, Any]]] = {
    "e2e": [
        {"meaning_representation": "name[A], eatType[pub]", "human_reference": "A pub."},
        {"meaning_representation": "name[B]", "human_reference": "B."},
        {"meaning_representation": "name[A], eatType[pub]", "human_reference": "A is a pub."},
    ],
    "webnlg": [
        {
            "category": "Food",
            "modified_triple_sets": {"mtriple_set": [["A | b | C", "A | d | E_F"]]},
            "lex": {"comment": ["good", "toFix"], "text": ["A is C.", "a c"], "lid": ["Id1", "Id2"]},
        },
        {
            "category": "Food",
            "modified_triple_sets": {"mtriple_set": [["A | b | C"]]},
            "lex": {"comment": [], "text": []},
        },
    ],
    "dart": [{"tripleset": [["A", "B_C", "D"]], "annotations": {"source": ["x"], "text": ["A and D."]}}],
    "xsum": [{"document": "Long.", "summary": "Short.", "id": "1"}],
}
ENTRIES = {
    "e2e": [Entry("name : A | Type : pub", ("A pub.", "A is a pub.")), Entry("name : B", ("B.",))],
    "webnlg": [Entry(" | A : b : C | A : d : E_F", ("A is C.", "a c"), "Food", unfit=("a c",))],
    "dart": [Entry("A : b_c : D", ("A and D.",))],
    "xsum": [Entry("Long.", ("Short.",))],
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What was asked of the stand-in."""
    calls: list[tuple[Any, ...]] = []
    by_repository = {task.hub.repository: name for name, task in TASKS.items()}

    def load_dataset(*names: str, split: str) -> list[dict[str, Any]]:
        calls.append((*names, split))
        return ROWS[by_repository[names[0]]]

    stand_in = ModuleType("datasets")
    stand_in.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    return calls


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_the_hub_become_the_entries_of_the_official_files(name: str, asked: list[Any]) -> None:
    assert fetch_task(TASKS[name], "dev") == ENTRIES[name]
    assert asked[0][0] == TASKS[name].hub.repository
    assert asked[0][-1] == TASKS[name].hub.splits["dev"]


def test_a_configuration_is_asked_for_where_there_is_one(asked: list[Any]) -> None:
    fetch_task(TASKS["webnlg"], "train")
    assert asked == [("webnlg-challenge/web_nlg", "webnlg_challenge_2017", "train")]


def test_rows_laid_out_otherwise_are_named(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROWS, "dart", [{"triples": [], "text": "A"}])
    with pytest.raises(
        BadExamples, match=r"Yale-LILY/dart \(dev\), line 1: found the fields 'triples', 'text'"
    ):
        fetch_task(TASKS["dart"], "dev")
    monkeypatch.setitem(ROWS, "dart", [])
    with pytest.raises(BadExamples, match="gave no entry for dev"):
        fetch_task(TASKS["dart"], "dev")


def test_without_the_package_the_way_by_path_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DownloadFailed, match="needs the package datasets.*give their path"):
        fetch_task(TASKS["xsum"], "dev")


def test_a_hub_that_does_not_answer_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*names: str, split: str) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    stand_in = ModuleType("datasets")
    stand_in.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    with pytest.raises(
        DownloadFailed, match="EdinburghNLP/xsum.*ConnectionError: Couldn't reach the Hub.*path"
    ):
        fetch_task(TASKS["xsum"], "dev")


def test_splits_and_limits(asked: list[Any]) -> None:
    assert len(fetch_task(TASKS["e2e"], "dev", limit=1)) == 1
    with pytest.raises(UsageError, match="no split 'validation'; expected train, dev, test"):
        fetch_task(TASKS["e2e"], "validation")
    with pytest.raises(UsageError, match="limit is 0"):
        fetch_task(TASKS["e2e"], "dev", limit=0)
