"""Files of preferences: OpenAI's and TRL's forms, and what is wrong with a line, by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from foreword.errors import BadExamples, CannotRead, UsageError
from foreword.examples import Preference, read_examples, read_preferences

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
    ],
    ids=["openai", "trl", "trl without a prompt", "trl with the prompt as a text, too"],
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
    with pytest.raises(BadExamples, match="no field 'user'"):
        read_preferences(write(tmp_path, OPENAI), fields={"owner": "user"})
    with pytest.raises(
        UsageError, match="fields has the key 'source'; expected prompt, chosen, rejected, owner"
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
        ({"preferred_output": [said("2", "user")]}, "the role of the message of preferred_output is 'user'"),
        (
            {"preferred_output": [said("2", "judge")]},
            "the role of the message of preferred_output is 'judge'",
        ),
        ({"preferred_output": [said(" ")]}, "preferred_output is empty"),
        ({"preferred_output": "2"}, "field 'preferred_output' is text; expected a list with a message"),
        (
            {"preferred_output": [{"role": "assistant", "tool_calls": [TOOL]}]},
            "preferred_output calls a tool",
        ),
        (
            {"preferred_output": [said([{"type": "image_url", "image_url": {}}])]},
            r"is a list of parts \(image_url\); expected text",
        ),
        ({"preferred_output": [said(None)]}, "is null; expected text"),
        ({"input": "Two?"}, "field 'input' is text; expected an object with messages"),
        ({"input": {}}, "input has no field 'messages'; found none"),
        ({"input": {"messages": []}}, "input.messages has no messages"),
        ({"input": {"messages": "Two?"}}, "field 'input.messages' is text; expected a list of messages"),
        ({"input": {"messages": [ASKED], "tools": [TOOL]}}, "input declares tools"),
        ({"input": {"messages": ["Two?"]}}, "message 1 of input.messages is text; expected an object"),
    ],
)
def test_a_fault_of_openais_form_is_named_with_its_line(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = write(tmp_path, OPENAI, {**OPENAI, **change})
    with pytest.raises(BadExamples, match=f"pairs.jsonl, line 2: .*{message}"):
        read_preferences(path)


@pytest.mark.parametrize("name", ["input", "preferred_output", "non_preferred_output"])
def test_a_missing_field_is_named(tmp_path: Path, name: str) -> None:
    record = {key: value for key, value in OPENAI.items() if key != name}
    with pytest.raises(
        BadExamples, match=f"line 1: no field '{name}'; found '.*; expected input, preferred_output"
    ):
        read_preferences(write(tmp_path, record))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "no field 'rejected'; found 'prompt', 'chosen'"),
        ({"chosen": "b", "rejected": "c"}, "there is no 'prompt'; expected the text or the messages"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are equal"),
        ({"prompt": "a", "chosen": "b", "rejected": [said("c")]}, "'rejected' is a list; expected text"),
        ({"prompt": [ASKED], "chosen": "b", "rejected": "c"}, "'chosen' is text; expected a list"),
        ({"chosen": [ASKED, said("2")], "rejected": [ASKED, said("2")]}, "chosen and rejected are equal"),
        (
            {"chosen": [said("2")], "rejected": [said("3")]},
            "the beginning that chosen and rejected share has no",
        ),
        (
            {
                "chosen": [ASKED, said("2"), ASKED, said("3")],
                "rejected": [ASKED, said("4"), ASKED, said("5")],
            },
            "chosen has 3 messages; expected one",
        ),
        ({"messages": [ASKED, said("2")]}, "no preference; found 'messages'; expected input"),
        ({"source": "a", "target": "b"}, "no preference; found 'source', 'target'"),
        ({"prompt": "a", "completion": "b"}, "no preference; found 'prompt', 'completion'"),
    ],
)
def test_a_fault_of_trls_form_is_named_with_its_line(
    tmp_path: Path, record: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadExamples, match=f"line 1: .*{message}"):
        read_preferences(write(tmp_path, record))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadExamples, match="pairs.jsonl is empty; expected at least one preference"):
        read_preferences(write(tmp_path))


@pytest.mark.parametrize("record", [OPENAI, {"prompt": "a", "chosen": "b", "rejected": "c"}])
def test_preferences_are_no_examples(tmp_path: Path, record: dict[str, Any]) -> None:
    with pytest.raises(BadExamples, match="line 1: found .*: a preference between two answers.*method='dpo'"):
        read_examples(write(tmp_path, record))
