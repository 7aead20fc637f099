"""The forms in which people have training files: told apart, said, forced and mapped; and mixed ones refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from foreword.errors import BadExamples, UnknownField, UsageError
from foreword.examples import Example, read_examples
from foreword.examples.records import parse_fields

USER, AGAIN = {"role": "user", "content": "Two?"}, {"role": "user", "content": "Three?"}
ANSWER = {"role": "assistant", "content": "2"}
SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "Two?"},
    {"from": "gpt", "value": "2"},
    {"from": "human", "value": "Three?"},
    {"from": "gpt", "value": "3"},
]
OF_TURNS = [Example((SYSTEM, USER), "2"), Example((SYSTEM, USER, ANSWER, AGAIN), "3")]

FORMS: dict[str, tuple[dict[str, Any], list[Example], str]] = {
    "texts": ({"source": "a", "target": "b"}, [Example("a", "b")], "source and target"),
    "chat": ({"messages": [USER, ANSWER]}, [Example((USER,), "2")], "OpenAI chat messages"),
    "turns in messages": ({"messages": TURNS}, OF_TURNS, "OpenAI chat messages"),
    "ShareGPT": ({"id": "1", "conversations": TURNS}, OF_TURNS, "ShareGPT conversations"),
    "ShareGPT, system apart": (
        {"conversations": TURNS[1:3], "system": "Be brief."},
        [OF_TURNS[0]],
        "ShareGPT conversations",
    ),
    "ShareGPT, one": ({"conversation": TURNS}, OF_TURNS, "ShareGPT conversations"),
    "prompt": ({"prompt": "a", "completion": "b"}, [Example("a", "b")], "prompt and completion"),
    "prompt of messages": (
        {"prompt": [USER, ANSWER, AGAIN], "completion": [{**ANSWER, "content": "3"}]},
        [Example((USER, ANSWER, AGAIN), "3")],
        "prompt and completion",
    ),
    "Alpaca": (
        {"instruction": "Add.", "input": "1 1", "output": "2"},
        [Example("Add.\n1 1", "2")],
        "Alpaca instructions",
    ),
    "Alpaca without input": (
        {"instruction": "Add.", "input": "", "output": "2", "text": "as one"},
        [Example("Add.", "2")],
        "Alpaca instructions",
    ),
    "Alpaca with history": (
        {"instruction": "Three?", "output": "3", "system": "Be brief.", "history": [["Two?", "2"]]},
        OF_TURNS,
        "Alpaca instructions",
    ),
    "Dolly": (
        {"instruction": "Add.", "context": "1 1", "response": "2", "category": "qa"},
        [Example("Add.\n1 1", "2")],
        "Alpaca instructions",
    ),
}


@pytest.mark.parametrize("layout", ["lines", "array", "indented"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_recognised_and_said(tmp_path: Path, form: str, layout: str) -> None:
    record, expected, title = FORMS[form]
    path = tmp_path / "data.json"
    if layout == "lines":
        path.write_text(2 * (json.dumps(record) + "\n"))
    else:
        path.write_text(json.dumps([record, record], indent=2 if layout == "indented" else None))
    told: list[str] = []
    assert read_examples(path, notify=told.append) == expected * 2
    count = len(expected)
    of = "" if count == 1 else " of 2 records"
    # The same conversation twice: nothing is lost, and the second is said to be there.
    again = "1 repeats an earlier one, and is" if count == 1 else f"{count} repeat earlier ones, and are"
    assert told == [f"read {2 * count} examples{of}: {title}; {again} kept"]


@pytest.mark.parametrize("form", ["texts", "prompt", "Alpaca", "Dolly"])
def test_texts_may_stand_in_a_table(tmp_path: Path, form: str) -> None:
    record, expected, _ = FORMS[form]
    with open(tmp_path / "data.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(record))
        writer.writeheader()
        writer.writerow(record)
    assert read_examples(tmp_path / "data.csv") == expected


def test_fields_of_other_names_are_mapped_and_tell_the_form(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"question": "a", "answer": "b", "prompt": "c", "completion": "d", "chat": []}\n')
    fields = parse_fields("source=question, target=answer", "fields")
    assert read_examples(path, fields=fields) == [Example("a", "b")]
    assert read_examples(path, fields={"prompt": "question"}) == [Example("a", "d")]
    path.write_text(json.dumps({"chat": [USER, ANSWER]}))
    assert read_examples(path, fields={"messages": "chat"}) == [Example((USER,), "2")]
    with pytest.raises(UsageError, match="messages, target, which no format has together"):
        read_examples(path, fields={"messages": "chat", "target": "b"})


@pytest.mark.parametrize("text", ["source", "source=", "=question", "source=a,source=b", ""])
def test_a_list_of_fields_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--fields is .*; expected each part once"):
        parse_fields(text, "--fields")
    with pytest.raises(UsageError, match="has the part 'question'; expected source, target"):
        parse_fields("question=source", "--fields")


def test_a_form_can_be_forced(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    record = {"messages": [USER, ANSWER], "instruction": "Add.", "output": "2"}
    path.write_text(json.dumps(record))
    assert read_examples(path) == [Example((USER,), "2")]
    assert read_examples(path, format="alpaca") == [Example("Add.", "2")]
    with pytest.raises(BadExamples, match="line 1: no field 'conversations'"):
        read_examples(path, format="sharegpt")


def test_fields_of_no_form_are_named_with_all_that_there_are(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a"}\n')
    with pytest.raises(UnknownField) as caught:
        read_examples(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line 1: found the fields 'text'; expected those of one of")
    for words in ("messages (chat)", "prompt and completion", 'fields={"source": "…", "target": "…"}'):
        assert words in message
    path.write_text('[{"role": "user", "content": "a"}]\n')
    with pytest.raises(UnknownField, match='as of one message; put {"messages"'):
        read_examples(path)


def test_two_forms_in_one_file_are_both_named_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    rows = [{"messages": [USER, ANSWER]}, {"messages": [USER, ANSWER]}, {"prompt": "a", "completion": "b"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(BadExamples) as caught:
        read_examples(path)
    assert str(caught.value) == (
        f"{path}, line 3: found prompt and completion (prompt, completion), but in line 1 OpenAI chat messages "
        "(messages); expected one form in a file: make two files of it"
    )


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"conversations": []}, "the conversation is empty"),
        ({"conversations": TURNS[1:2]}, "no message of the assistant"),
        (
            {"conversations": [{"from": "bot", "value": "a"}]},
            "speaker of message 1 is 'bot'; expected system",
        ),
        ({"conversations": [{"from": "human", "value": None}, TURNS[2]]}, "content of message 1 is null"),
        ({"prompt": "a", "completion": [ANSWER]}, "prompt is text and completion is a list; expected two"),
        ({"prompt": "a", "completion": ""}, "target is empty"),
        ({"instruction": 3, "output": "b"}, "'instruction' is a number; expected text"),
        ({"instruction": "a", "output": "b", "history": ["c"]}, "a list of .question, answer."),
    ],
)
def test_a_fault_names_its_line(tmp_path: Path, record: dict[str, Any], words: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(record))
    with pytest.raises(BadExamples, match=f"line 1: .*{words}"):
        read_examples(path)


def test_an_answer_at_the_beginning_of_a_shared_conversation_is_context(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"conversations": [TURNS[2], *TURNS[3:]]}))
    assert read_examples(path) == [Example((ANSWER, AGAIN), "3")]


def test_a_blank_instruction_leaves_the_input(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"instruction": " ", "input": "Hello.", "output": "Hi."}) + "\n")
    assert read_examples(path) == [Example("Hello.", "Hi.")]
