"""Tasks: official files become entries, and a file of another task is named as what it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foreword.errors import BadExamples, CannotRead, UsageError
from foreword.evaluation import TASKS, cut_sources, find_task, read_task, without_categories
from foreword.evaluation.metrics import METRICS
from foreword.evaluation.task_data import looks_like
from foreword.examples import Entry, examples_of, read_examples
from foreword.sampling import Decoding
from support.stand_ins import byte_tokenizer

XML = (
    '<benchmark><entries><entry category="{category}" eid="Id1">{more}<modifiedtripleset>'
    "<mtriple>A | b | C</mtriple></modifiedtripleset>"
    '<lex comment="good" lid="Id1">A is C.</lex></entry></entries></benchmark>\n'
)
ORIGINAL = "<originaltripleset><otriple>A | b | C</otriple></originaltripleset>"
DART = [{"tripleset": [["A", "B_C", "D"]], "annotations": [{"source": "x", "text": "A and D."}]}]

# One small official-looking file for each task.
FILES: dict[str, tuple[str, str]] = {
    "e2e": ("e2e.csv", 'mr,ref\n"name[A], eatType[pub]",A pub.\n"name[A], eatType[pub]",A is a pub.\n'),
    "webnlg": ("webnlg.xml", XML.format(category="Food", more=ORIGINAL)),
    "dart": ("dart.json", json.dumps(DART)),
    "xsum": ("xsum.jsonl", json.dumps({"document": "Long.", "summary": "Short.", "id": "1"}) + "\n"),
    "cnn": ("cnn.jsonl", json.dumps({"article": "Long.", "highlights": "Short.", "id": "1"}) + "\n"),
    "scitldr": ("scitldr.jsonl", json.dumps({"source": ["One.", "Two."], "target": ["S.", "T."]}) + "\n"),
    "aeslc": ("aeslc.jsonl", json.dumps({"email_body": "Hi Ann.", "subject_line": "Hi"}) + "\n"),
}
ENTRIES = {
    "e2e": Entry("name : A | Type : pub", ("A pub.", "A is a pub.")),
    "webnlg": Entry(" | A : b : C", ("A is C.",), "Food"),
    "dart": Entry("A : b_c : D", ("A and D.",)),
    "xsum": Entry("Long.", ("Short.",)),
    "cnn": Entry("Long.", ("Short.",)),
    "scitldr": Entry("One. Two.", ("S.", "T.")),
    "aeslc": Entry("Hi Ann.", ("Hi",)),
}


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    """The file of a task."""

    def file(task: str) -> Path:
        name, content = FILES[task]
        (tmp_path / name).write_text(content)
        return tmp_path / name

    return file


@pytest.mark.parametrize("name", TASKS)
def test_official_files_become_entries(name: str, file: Callable[[str], Path]) -> None:
    assert read_task(TASKS[name], file(name)) == [ENTRIES[name]]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_tells_decoding_and_metrics_that_there_are(name: str) -> None:
    task = find_task(name)
    Decoding(**task.decoding)
    assert set(task.metrics) <= set(METRICS)
    assert {"train", "dev"} <= set(task.hub.splits)


def test_decoding_is_as_the_paper_has_it() -> None:
    for name in ("e2e", "webnlg", "dart"):
        assert dict(TASKS[name].decoding) == {
            "beams": 5,
            "max_new_tokens": 100,
            "length_penalty": 1.0,
            "banned": ("\n",),
        }
    assert dict(TASKS["xsum"].decoding) == {
        "beams": 6,
        "min_new_tokens": 11,
        "max_new_tokens": 62,
        "length_penalty": 0.8,
    }


def test_cnn_is_decoded_as_bart_was_published() -> None:
    decoding = TASKS["cnn"].decoding
    assert (decoding["min_new_tokens"], decoding["max_new_tokens"], decoding["beams"]) == (55, 140, 4)


def test_cnn_keeps_and_may_write_a_highlight_a_line(tmp_path: Path) -> None:
    """ROUGE-Lsum takes lines for sentences."""
    path = tmp_path / "cnn.jsonl"
    path.write_text(json.dumps({"article": "Long.", "highlights": "One .\nTwo ."}) + "\n")
    assert read_task(TASKS["cnn"], path)[0].references == ("One .\nTwo .",)
    decoding = TASKS["cnn"].decoding
    assert not {*decoding.get("banned", ()), *decoding.get("stop", ())}


@pytest.mark.parametrize("given", TASKS)
@pytest.mark.parametrize("asked", TASKS)
def test_a_file_of_another_task_is_named(asked: str, given: str, file: Callable[[str], Path]) -> None:
    if asked == given:
        assert looks_like(file(given)) == given
        return
    with pytest.raises(BadExamples) as caught:
        read_task(TASKS[asked], file(given))
    message = str(caught.value)
    assert str(file(given)) in message  # what was found ...
    assert TASKS[asked].title in message  # ... what was expected ...
    assert f"give the task {given}" in message  # ... and what to do


@pytest.mark.parametrize(("comment", "task"), [("good", "webnlg"), ("WikiSQL_decl_sents", "dart")])
def test_comments_tell_webnlg_from_dart(tmp_path: Path, comment: str, task: str) -> None:
    path = tmp_path / "plain.xml"
    path.write_text(XML.format(category="MISC", more="").replace('"good"', f'"{comment}"'))
    assert looks_like(path) == task
    other = "dart" if task == "webnlg" else "webnlg"
    with pytest.raises(BadExamples, match=f"give the task {task}"):
        read_task(TASKS[other], path)


def test_xml_that_does_not_say_may_be_of_either(tmp_path: Path) -> None:
    path = tmp_path / "plain.xml"
    path.write_text(XML.format(category="MISC", more="").replace(' comment="good"', ""))
    assert read_task(TASKS["webnlg"], path)[0].source == " | A : b : C"
    assert read_task(TASKS["dart"], path)[0].source == "A : b : C"


def test_mails_keep_their_owners(tmp_path: Path) -> None:
    path = tmp_path / "mails.jsonl"
    path.write_text(json.dumps({"user": "ann", "source": "Hi.", "target": "Hello"}) + "\n")
    assert examples_of(read_task(TASKS["aeslc"], path))[0].owner == "ann"


MAIL = {"user": "ann", "source": "Hi.", "target": "Hello"}
BOTH = {"source": "Long.", "target": "Short.", "article": "Long.", "highlights": "Short."}


@pytest.mark.parametrize(
    ("asked", "record", "named", "found"),
    [
        ("xsum", MAIL, "aeslc", "'user', 'source', 'target'"),
        ("cnn", MAIL, "aeslc", "'user', 'source', 'target'"),
        ("xsum", BOTH, "cnn", "'source', 'target', 'article', 'highlights'"),
        ("aeslc", BOTH, "cnn", "'source', 'target', 'article', 'highlights'"),
    ],
)
@pytest.mark.parametrize("before", [0, 1])
def test_a_record_with_the_fields_of_another_task_is_refused(
    tmp_path: Path, asked: str, record: dict[str, Any], named: str, found: str, before: int
) -> None:
    plain = {"source": "Long.", "target": "Short."}
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in [*[plain] * before, record]))
    with pytest.raises(BadExamples) as caught:
        read_task(TASKS[asked], path)
    message = str(caught.value)
    assert f"line {before + 1}: found the fields {found}, as {TASKS[named].title} has them" in message
    assert f"{TASKS[asked].title} has " in message
    assert f"give the task {named}" in message


@pytest.mark.parametrize("name", ["xsum", "cnn", "aeslc"])
def test_a_record_that_nothing_ties_to_another_task_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps({"source": "Long.", "target": "Short.", "id": 7}) + "\n")
    assert read_task(TASKS[name], path) == [Entry("Long.", ("Short.",))]


def test_the_own_names_of_a_tasks_fields_settle_it(tmp_path: Path) -> None:
    record = {"article": "Long.", "highlights": "Short.", "document": "x", "summary": "y", **MAIL}
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(record) + "\n")
    assert read_task(TASKS["cnn"], path) == [Entry("Long.", ("Short.",))]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (
            {"title": "x", "body": "y"},
            ["line 1", "'title', 'body'", "document and summary", "without a task"],
        ),
        ({"document": 3, "summary": "y"}, ["line 1", "source is a number"]),
        ({"document": "x", "summary": []}, ["line 1", "an empty list"]),
        ({"document": "x", "summary": ""}, ["line 1", "target is empty"]),
        ({"document": ["x"], "summary": "y"}, ["'document' is a list", "has text there"]),
    ],
)
def test_a_record_that_does_not_fit_names_its_line(
    tmp_path: Path, record: dict[str, Any], words: list[str]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n" * 0 + json.dumps(record) + "\n")
    with pytest.raises(BadExamples) as caught:
        read_task(TASKS["xsum"], path)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_empty_and_absent_files_unknown_tasks_and_limits(tmp_path: Path, file: Callable[[str], Path]) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(BadExamples, match="is empty; expected data of XSum"):
        read_task(TASKS["xsum"], tmp_path / "empty.jsonl")
    with pytest.raises(CannotRead, match="does not exist"):
        read_task(TASKS["e2e"], tmp_path / "absent.csv")
    with pytest.raises(UsageError, match="no task 'glue'; expected e2e, webnlg"):
        find_task("glue")
    with pytest.raises(UsageError, match="limit is 0"):
        read_task(TASKS["e2e"], file("e2e"), limit=0)


def test_categories_are_held_out_whole() -> None:
    entries = [Entry(str(place), ("x",), "ABC"[place % 3]) for place in range(9)]
    others, held_out = without_categories(entries, ["B"])
    assert {entry.category for entry in held_out} == {"B"}
    assert {entry.category for entry in others} == {"A", "C"}
    assert len(others) + len(held_out) == 9
    with pytest.raises(UsageError, match="category 'D'; the data has A, B, C"):
        without_categories(entries, ["D"])


def test_sources_are_cut_by_tokens_and_counted() -> None:
    entries = [Entry("abcdef", ("x",)), Entry("abc", ("y",)), Entry("ab\ncd", ("z",))]
    cut, number = cut_sources(entries, byte_tokenizer(), 3)
    assert [entry.source for entry in cut] == ["abc", "abc", "ab\n"]
    assert number == 2
    assert [entry.references for entry in cut] == [("x",), ("y",), ("z",)]


@pytest.mark.parametrize(
    ("split", "entries", "good", "texts"), [("train", 6_940, 18_025, 18_102), ("dev", 872, 2_258, 2_268)]
)
def test_webnlg_has_its_published_counts(
    data_folder: Path, split: str, entries: int, good: int, texts: int
) -> None:
    found = read_task(TASKS["webnlg"], data_folder / "webnlg" / split)
    assert len(found) == entries
    assert len(examples_of(found)) == good
    assert sum(len(entry.references) for entry in found) == texts
    assert len({entry.category for entry in found}) == 10
    assert not {entry.category for entry in found} & TASKS["webnlg"].unseen


@pytest.mark.parametrize(
    ("name", "path", "count"),
    [("e2e", "e2e/devset.csv", 547), ("scitldr", "scitldr/dev.jsonl", 618), ("aeslc", "aesc/dev.jsonl", 705)],
)
def test_published_files_are_read_as_entries(data_folder: Path, name: str, path: str, count: int) -> None:
    found = read_task(TASKS[name], data_folder / path)
    if name != "scitldr":  # as published its rows may repeat
        fields = {"owner": "user"} if name == "aeslc" else None
        assert sorted(map(repr, examples_of(found))) == sorted(
            map(repr, read_examples(data_folder / path, fields=fields))
        )
    assert len(found) >= count
