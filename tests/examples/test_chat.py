"""Conversations: an example for every message of the assistant that OpenAI would train on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from foreword.errors import BadExamples
from foreword.examples import Example, read_examples

SYSTEM = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": "Two?"}
ANSWER = {"role": "assistant", "content": "2"}
AGAIN = {"role": "user", "content": "Three?"}
ANSWER_AGAIN = {"role": "assistant", "content": "3"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.jsonl"


def read(path: Path, *conversations: Any) -> list[Example]:
    path.write_text("".join(json.dumps(c) + "\n" for c in conversations))
    return read_examples(path)


def test_every_message_of_the_assistant_is_an_example(path):
    assert read(path, {"messages": [SYSTEM, ASK, ANSWER, AGAIN, ANSWER_AGAIN]}) == [
        Example((SYSTEM, ASK), "2"),
        Example((SYSTEM, ASK, ANSWER, AGAIN), "3"),
    ]


def test_a_message_of_weight_0_is_context_only(path):
    unlearned = {**ANSWER, "weight": 0}
    assert read(path, {"messages": [ASK, unlearned, AGAIN, {**ANSWER_AGAIN, "weight": 1}]}) == [
        Example((ASK, ANSWER, AGAIN), "3")
    ]


def test_a_weight_of_null_says_nothing(path):
    assert read(path, {"messages": [ASK, {**ANSWER, "weight": None}]}) == [Example((ASK,), "2")]


def test_parts_that_are_all_text_are_one_text(path):
    parts = [{"type": "text", "text": "Tw"}, {"type": "text", "text": "o?"}]
    answer = {**ANSWER, "content": [{"type": "text", "text": "2"}]}
    assert read(path, {"messages": [{**ASK, "content": parts}, answer]}) == [Example((ASK,), "2")]


def test_a_developers_message_is_a_system_message(path):
    developer = {**SYSTEM, "role": "developer"}
    assert read(path, {"messages": [developer, ASK, ANSWER]}) == [Example((SYSTEM, ASK), "2")]


def test_a_conversation_may_have_an_owner(path):
    assert read(path, {"messages": [ASK, ANSWER], "owner": "ann"}) == [Example((ASK,), "2", "ann")]


def test_loss_weights_of_llama_factory_are_weights(path):
    parts = [{"type": "text", "value": "2"}]
    assert read(path, {"messages": [{**ASK, "loss_weight": 0.0}, {**ANSWER, "content": parts}]}) == [
        Example((ASK,), "2")
    ]


def test_a_name_of_a_participant_is_left_out(path):
    assert read(path, {"messages": [{**ASK, "name": "ann"}, ANSWER]}) == [Example((ASK,), "2")]


@pytest.mark.parametrize(
    ("conversation", "words"),
    [
        ({"messages": []}, ["conversation is empty"]),
        ({"messages": "hello"}, ["'messages' is text", "a list of messages"]),
        ({"messages": [ASK]}, ["no message of the assistant"]),
        ({"messages": [ASK, {**ANSWER, "weight": 0}]}, ["no message of the assistant", "weight"]),
        ({"messages": [ASK, {**ANSWER, "weight": 0.5}]}, ["weight of message 2 is 0.5", "0 or 1"]),
        ({"messages": [ANSWER, ASK]}, ["message 1", "answers nothing"]),
        ({"messages": ["hello", ANSWER]}, ["message 1 is text", "role and content"]),
        ({"messages": [{"role": "bot", "content": "a"}]}, ["'bot'", "system, user, assistant"]),
        ({"messages": [{"role": "x" * 10_000, "content": "a"}]}, ["xxx…'", "system, user, assistant"]),
        ({"messages": [ASK, {**ANSWER, "weight": [[]]}]}, ["weight of message 2 is a list", "0 or 1"]),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": None}]}, ANSWER]},
            ["content of message 1", "parts (text)", "expected text"],
        ),
        ({"messages": [{"role": "user", "content": []}, ANSWER]}, ["content of message 1", "parts (none)"]),
        ({"messages": [{"content": "a"}]}, ["role of message 1 is absent"]),
        ({"messages": [{"role": 3, "content": "a"}]}, ["role of message 1 is a number"]),
        ({"messages": [ASK, {"role": "assistant", "content": None}]}, ["content of message 2 is null"]),
        ({"messages": [ASK, {"role": "assistant"}]}, ["content of message 2 is absent"]),
        ({"messages": [ASK, {"role": "assistant", "content": " "}]}, ["target is empty"]),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]},
            ["content of message 1", "image_url", "expected text"],
        ),
        ({"messages": [ASK, {"role": "assistant", "content": "\ud83d"}]}, ["surrogate"]),
        ({"messages": [{"role": "user", "content": "\ud83d"}, ANSWER]}, ["surrogate", "message 1"]),
        ({"turns": []}, ["no field 'messages'"]),
    ],
)
def test_a_fault_names_line_and_message(path, conversation, words):
    path.write_text(json.dumps({"messages": [ASK, ANSWER]}) + "\n" + json.dumps(conversation) + "\n")
    with pytest.raises(BadExamples) as caught:
        read_examples(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line 2: ")
    assert all(word in message for word in words), message
