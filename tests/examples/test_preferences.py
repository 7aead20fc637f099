"""Files of preferences: OpenAI's and TRL's forms, and what is wrong with a line, by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from foreword.errors import BadExamples, CannotRead, UsageError
from foreword.examples import Example, Preference, read_examples, read_preferences

ASKED = {"role": "user", "content": "Two?"}


def said(text: Any, role: str = "assistant") -> dict[str, Any]:
    return {"role": role, "content": text}


OPENAI: dict[str, Any] = {
    "input": {"messages": [ASKED], "tools": [], "parallel_tool_calls": True},
    "preferred_output": [said("2, if you please")],
    "non_preferred_output": [said("2")],
}
READ = Preference((ASKED,), "2, if you please", "2")


def write(folder: Path, *records: Any) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize(
    "record",
    [
        OPENAI,
        {"prompt": [ASKED], "chosen": [said("2, if you please")], "rejected": [said("2")]},
        {"chosen": [ASKED, said("2, if you please")], "rejected": [ASKED, said("2")]},
        {"prompt": "Two?", "chosen": [ASKED, said("2, if you please")], "rejected": [ASKED, said("2")]},
        {
            "conversations": [{"from": "human", "value": "Two?"}],
            "chosen": {"from": "gpt", "value": "2, if you please"},
            "rejected": {"from": "gpt", "value": "2"},
        },
    ],
    ids=["openai", "trl", "trl without a prompt", "trl with the prompt as a text, too", "llama-factory"],
)
def test_conversations_of_each_form_are_the_same_preference(tmp_path: Path, record: dict[str, Any]) -> None:
    (found,) = read_preferences(write(tmp_path, record))
    assert found == READ
    assert found.place is not None
    assert found.place.endswith("pairs.jsonl, line 1")


def test_texts_stay_texts(tmp_path: Path) -> None:
    path = write(tmp_path, {"prompt": "Two?", "chosen": "2, please", "rejected": "2", "score": 3})
    assert read_preferences(path) == [Preference("Two?", "2, please", "2")]


def test_a_developers_message_is_the_systems_and_parts_of_text_are_one_text(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Two"}, {"type": "text", "text": "?"}]
    record = {**OPENAI, "input": {"messages": [said("Be kind.", "developer"), said(parts, "user")]}}
    (found,) = read_preferences(write(tmp_path, record))
    assert found.source == (said("Be kind.", "system"), ASKED)


def test_fields_and_owners_can_have_other_names(tmp_path: Path) -> None:
    path = write(tmp_path, {"q": "Two?", "good": "2, please", "bad": "2", "user": 7})
    fields = {"prompt": "q", "chosen": "good", "rejected": "bad", "owner": "user"}
    # A line that is named by other fields alone is not recognised, and need not be.
    assert read_preferences(path, fields=fields) == [Preference("Two?", "2, please", "2", "7")]
    with pytest.raises(BadExamples, match=r"^[^:]*pairs.jsonl, line 1: no field 'user'"):
        read_preferences(write(tmp_path, OPENAI), fields={"owner": "user"})
    with pytest.raises(BadExamples, match="no preference; found 'input', 'preferred_output'"):
        read_preferences(write(tmp_path, OPENAI), fields=fields)
    with pytest.raises(
        UsageError, match="fields names 'source', but preferences take chosen, .*owner, prompt, rejected"
    ):
        read_preferences(path, fields={"source": "q"})


def test_a_limit_leaves_the_rest_unread(tmp_path: Path) -> None:
    path = write(tmp_path, OPENAI, "no object")
    assert read_preferences(path, limit=1) == [READ]
    with pytest.raises(UsageError, match="limit is 0"):
        read_preferences(path, limit=0)
    with pytest.raises(CannotRead):
        read_preferences(tmp_path / "absent.jsonl")


TOOL = {"type": "function", "function": {"name": "paint"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"non_preferred_output": OPENAI["preferred_output"]},
            "preferred_output and non_preferred_output are equal",
        ),
        ({"preferred_output": []}, "preferred_output has no messages; expected one, of the assistant"),
        ({"preferred_output": [said("2"), said("3")]}, "preferred_output has 2 messages; expected one"),
        ({"preferred_output": [said("2", "user")]}, "the role of message 1 of preferred_output is 'user'"),
        (
            {"preferred_output": [said("2", "judge")]},
            "the role of message 1 of preferred_output is 'judge'",
        ),
        ({"preferred_output": [said(" ")]}, "preferred_output is empty"),
        ({"preferred_output": "2"}, "field 'preferred_output' is text; expected a list with a message"),
        (
            {"preferred_output": [{"role": "assistant", "tool_calls": [TOOL]}]},
            "the arguments of tool call 1 of message 1 of preferred_output are null; expected a JSON object",
        ),
        (
            {"preferred_output": [said([{"type": "image_url", "image_url": {}}])]},
            r"is a list of parts \(image_url\); expected text",
        ),
        ({"preferred_output": [said(None)]}, "is null; expected text"),
        ({"input": "Two?"}, "preferred_output and non_preferred_output begin with different messages"),
        ({"input": {}}, "input has no field 'messages'; found none"),
        ({"input": {"messages": []}}, "input.messages has no messages"),
        ({"input": {"messages": "Two?"}}, "'preferred_output' is a list; expected text"),
        (
            {"input": {"messages": [ASKED], "tools": [{"type": "function"}]}},
            "tool 1 is an object with 'type'",
        ),
        ({"input": {"messages": ["Two?"]}}, "message 1 of input.messages is text; expected an object"),
    ],
)
def test_a_fault_of_openais_form_is_named_with_its_line(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = write(tmp_path, OPENAI, {**OPENAI, **change})
    with pytest.raises(BadExamples, match=f"pairs.jsonl, line 2: .*{message}"):
        read_preferences(path)


@pytest.mark.parametrize("name", ["preferred_output", "non_preferred_output"])
def test_a_missing_field_is_named(tmp_path: Path, name: str) -> None:
    record = {key: value for key, value in OPENAI.items() if key != name}
    with pytest.raises(
        BadExamples, match=f"line 1: no field '{name}'; found '.*; expected .*input, preferred_output"
    ):
        read_preferences(write(tmp_path, record))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "no field 'rejected'; found 'prompt', 'chosen'"),
        ({"chosen": "b", "rejected": "c"}, "'prompt' is absent; expected the text or the messages"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are equal"),
        ({"prompt": "a", "chosen": "b", "rejected": [said("c")]}, "'rejected' is a list; expected text"),
        ({"prompt": [ASKED], "chosen": "b", "rejected": "c"}, "'chosen' is text; expected a list"),
        ({"chosen": [ASKED, said("2")], "rejected": [ASKED, said("2")]}, "chosen and rejected are equal"),
        (
            {"chosen": [said("2")], "rejected": [said("3")]},
            "chosen and rejected begin with different messages, and no messages are in 'prompt'",
        ),
        (
            {
                "chosen": [ASKED, said("2"), ASKED, said("3")],
                "rejected": [ASKED, said("4"), ASKED, said("5")],
            },
            "chosen has 3 messages; expected one",
        ),
        ({"messages": [ASKED, said("2")]}, "no preference; found 'messages'; expected prompt"),
        ({"source": "a", "target": "b"}, "no preference; found 'source', 'target'"),
        ({"prompt": "a", "completion": "b"}, "no preference; found 'prompt', 'completion'"),
    ],
)
def test_a_fault_of_trls_form_is_named_with_its_line(
    tmp_path: Path, record: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadExamples, match=f"line 1: .*{message}"):
        read_preferences(write(tmp_path, record))


CALL = {"id": "c1", "type": "function", "function": {"name": "paint", "arguments": '{"colour": "red"}'}}
READ_CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{**CALL, "function": {"name": "paint", "arguments": {"colour": "red"}}}],
}


def test_an_answer_may_call_a_tool_that_the_input_declares(tmp_path: Path) -> None:
    called = {"role": "assistant", "tool_calls": [CALL]}
    openai = {
        "input": {"messages": [ASKED], "tools": [TOOL]},
        "preferred_output": [called],
        "non_preferred_output": [said("I will not.")],
    }
    trl = {"prompt": [ASKED], "chosen": [called], "rejected": [said("I will not.")], "tools": [TOOL]}
    source = ({"role": "system", "content": "", "tools": [TOOL]}, ASKED)
    expected = Preference(source, READ_CALL, "I will not.")
    for record in (openai, trl):
        assert read_preferences(write(tmp_path, record)) == [expected]


PAIR = {"prompt": "Two?", "chosen": "2, please", "rejected": "2"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pairs.json", json.dumps([PAIR, PAIR], indent=1)),
        ("pairs.csv", 'prompt,chosen,rejected\nTwo?,"2, please",2\nTwo?,"2, please",2\n'),
    ],
)
def test_what_holds_examples_holds_preferences(tmp_path: Path, name: str, content: str) -> None:
    told: list[str] = []
    path = tmp_path / name
    path.write_text(content)
    assert read_preferences(path, notify=told.append) == [Preference("Two?", "2, please", "2")] * 2
    assert told == ["read 2 preferences: pairs of answers; 1 repeats an earlier one, and is kept"]
    with pytest.raises(BadExamples, match="a preference between two answers"):
        read_examples(path)


def test_preferences_in_parquet_are_those_that_were_put_in(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="foreword[data] is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="foreword[data] is not installed")
    path = tmp_path / "pairs"
    parquet.write_table(pyarrow.Table.from_pylist([{**OPENAI, "input": {"messages": [ASKED]}}] * 2), path)
    assert read_preferences(path) == [READ, READ]


def test_the_better_answers_can_be_read_as_examples(tmp_path: Path) -> None:
    fields = {"source": "prompt", "target": "chosen"}
    assert read_examples(write(tmp_path, PAIR), fields=fields) == [Example("Two?", "2, please")]


def test_text_without_fields_is_no_preference(tmp_path: Path) -> None:
    path = tmp_path / "pairs"
    path.write_text("name : a||b\n")
    with pytest.raises(BadExamples, match="can't tell the format from .* chosen and rejected"):
        read_preferences(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadExamples, match="pairs.jsonl is empty; expected at least one preference"):
        read_preferences(write(tmp_path))


@pytest.mark.parametrize("record", [OPENAI, {"prompt": "a", "chosen": "b", "rejected": "c"}])
def test_preferences_are_no_examples(tmp_path: Path, record: dict[str, Any]) -> None:
    with pytest.raises(BadExamples, match="line 1: found .*: a preference between two answers.*method='dpo'"):
        read_examples(write(tmp_path, record))
