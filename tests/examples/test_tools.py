"""Calls of tools in training files: read from what people have, and written as the base's template writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from foreword import BaseModel, Template, train
from foreword.encoding import encode, encode_example
from foreword.errors import BadExamples, TemplateRefuses, UsageError
from foreword.examples import Example, digest, entries_of, read_examples
from support.saved_bases import CHAT_TEMPLATE, TOOL_TEMPLATE
from support.stand_ins import byte_tokenizer, tiny_llama

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
USER = {"role": "user", "content": "Rain in Oslo?"}
CALLING = {
    "role": "assistant",
    "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    ],
}
CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    ],
}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "no"}
ANSWER = {"role": "assistant", "content": "No rain."}
CHAT = Template(style="chat", end="<end>")
FRONT = ({"role": "system", "content": "", "tools": [TOOL]}, USER)
BEHIND = (*FRONT, CALLED, {**RESULT, "name": "weather"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.jsonl"


def read(path: Path, **record: Any) -> list[Example]:
    path.write_text(json.dumps(record) + "\n")
    return read_examples(path)


def test_a_conversation_with_a_call_is_two_examples(path: Path) -> None:
    found = read(path, messages=[USER, CALLING, RESULT, ANSWER], tools=[TOOL], parallel_tool_calls=False)
    assert found == [Example(FRONT, CALLED), Example(BEHIND, "No rain.")]


def test_a_system_message_has_the_tools(path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    (example,) = read(path, messages=[system, USER, CALLING], tools=[TOOL])
    assert example.source == ({**system, "tools": [TOOL]}, USER)


def test_a_call_of_weight_0_is_context_only(path: Path) -> None:
    (example,) = read(path, messages=[USER, {**CALLING, "weight": 0}, RESULT, ANSWER], tools=[TOOL])
    assert example == Example(BEHIND, "No rain.")


def test_functions_of_old_are_tools(path: Path) -> None:
    call = CALLING["tool_calls"][0]["function"]  # type: ignore[index]
    calling = {"role": "assistant", "content": None, "function_call": call}
    result = {"role": "function", "name": "weather", "content": "no"}
    first, second = read(path, messages=[USER, calling, result, ANSWER], functions=[TOOL["function"]])
    assert first.source == FRONT
    assert first.target["tool_calls"][0]["function"]["arguments"] == {"city": "Oslo"}  # type: ignore[index]
    assert second.source[-1] == {"role": "tool", "content": "no", "name": "weather"}


def test_tools_of_shared_conversations_are_read_from_their_texts(path: Path) -> None:
    """As LLaMA-Factory's Glaive files have them: declarations and calls are JSON in texts."""
    turns = [
        {"from": "human", "value": "Rain in Oslo?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
        {"from": "observation", "value": "no"},
        {"from": "gpt", "value": "No rain."},
    ]
    first, second = read(path, conversations=turns, tools=json.dumps([TOOL["function"]]))
    without_id = {**CALLED, "tool_calls": [{k: v for k, v in CALLED["tool_calls"][0].items() if k != "id"}]}  # type: ignore[attr-defined,index]
    assert (first.source, first.target) == (FRONT, without_id)
    assert second.source[-1] == {"role": "tool", "content": "no"}


def test_arguments_that_are_json_in_json_are_read_as_what_they_mean(path: Path) -> None:
    """As in a line of OpenAI's own drone example."""
    twice = {"name": "weather", "arguments": json.dumps('{"city": "Oslo"}')}
    calling = {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": twice}]}
    (example,) = read(path, messages=[USER, calling], tools=[TOOL])
    assert example.target == CALLED


@pytest.mark.parametrize(
    ("messages", "tools", "words"),
    [
        (
            [{"arguments": '{"city": '}],
            [TOOL],
            ["arguments of tool call 1 of message 2, 'weather'", "not JSON"],
        ),
        ([{"arguments": "[1]"}], [TOOL], ["arguments of tool call 1 of message 2 are a list"]),
        ([{"arguments": None}], [TOOL], ["are null; expected a JSON object"]),
        ([{"name": None}], [TOOL], ["tool call 1 of message 2", "expected a function with name"]),
        ([{}, {"arguments": "{"}], [TOOL], ["tool call 2 of message 2"]),
        ([{}], [{"type": "function", "function": {}}], ["tool 1 is an object with nothing"]),
        ([{}], [{"type": "function"}], ["tool 1 is an object with 'type'"]),
        ([{}], {"weather": {}}, ["'tools' is an object; expected a list of tools"]),
        ([{}], "[{", ["field 'tools' is text that is not JSON"]),
    ],
)
def test_a_broken_call_names_line_message_and_call(path: Path, messages: Any, tools: Any, words: Any) -> None:
    good = {"name": "weather", "arguments": "{}"}
    calls = [{"id": "1", "type": "function", "function": {**good, **changes}} for changes in messages]
    record = {"messages": [USER, {"role": "assistant", "tool_calls": calls}], "tools": tools}
    path.write_text(json.dumps({"messages": [USER, ANSWER]}) + "\n" + json.dumps(record) + "\n")
    with pytest.raises(BadExamples) as caught:
        read_examples(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line 2: ")
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    "target",
    [{}, {"role": "assistant", "content": "a"}, {**CALLED, "tool_calls": []}, {**CALLED, "role": "user"}],
)
def test_a_target_that_is_no_text_calls_tools(target: Any) -> None:
    with pytest.raises(BadExamples, match="target"):
        Example((USER,), target)


def test_an_example_with_tools_has_an_identity_of_its_own() -> None:
    examples = [Example(FRONT, CALLED), Example(FRONT, "No rain."), Example((USER,), "No rain.")]
    assert len({digest([each]) for each in examples}) == 3
    with pytest.raises(BadExamples, match="the target calls tools, and can be trained on, but"):
        entries_of(examples)


# -- as the base's template writes them --------------------------------------------------------------


def tokenizer(chat_template: str) -> Any:
    made = byte_tokenizer()
    made.chat_template = chat_template
    return made


CALL_TEXT = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


def test_a_call_is_learned_as_the_template_writes_it_in_a_conversation() -> None:
    made = tokenizer(TOOL_TEMPLATE)
    row, _ = encode_example(Example(FRONT, CALLED), made, CHAT)
    assert made.decode(row.source_ids) == f"{json.dumps([TOOL])}\nu: Rain in Oslo?\na: "
    assert made.decode(row.target_ids) == f"{CALL_TEXT}<end>"
    behind, _ = encode_example(Example(BEHIND, "No rain."), made, CHAT)
    before = made.decode(row.source_ids)
    assert made.decode(behind.source_ids) == f"{before}{CALL_TEXT}\nt: no\na: "
    assert made.decode(behind.target_ids) == "No rain.<end>"


def test_text_in_front_of_a_call_is_learned_with_it() -> None:
    made = tokenizer(TOOL_TEMPLATE)
    row, _ = encode_example(Example(FRONT, {**CALLED, "content": "Let me see. "}), made, CHAT)
    assert made.decode(row.target_ids) == f"Let me see. {CALL_TEXT}<end>"


@pytest.mark.parametrize(
    ("example", "what"),
    [
        (Example(FRONT, "No rain."), "the tool 'weather'"),
        (Example((USER,), CALLED), "the call of 'weather'"),
        (Example((USER, CALLED, USER), "No rain."), "the call of 'weather'"),
    ],
)
def test_a_template_without_tools_is_refused_by_name_with_the_line(example: Example, what: str) -> None:
    placed = Example(example.source, example.target, place="data.jsonl, line 3")
    with pytest.raises(TemplateRefuses) as caught:
        encode([placed], tokenizer(CHAT_TEMPLATE), CHAT)
    message = str(caught.value)
    assert "(data.jsonl, line 3): the base's chat template has no tools: it leaves out " + what in message


def test_an_answer_of_a_tool_that_a_template_leaves_out_is_not_lost_in_silence() -> None:
    silent = TOOL_TEMPLATE.replace("m['content']", "m['content'] if m['role'] != 'tool'")
    with pytest.raises(TemplateRefuses, match="leaves out the tool's answer 'no'"):
        encode([Example(BEHIND, "No rain.")], tokenizer(silent), CHAT)


def test_calls_need_the_chat_template() -> None:
    with pytest.raises(UsageError, match="calls tools needs the template style 'chat'"):
        encode([Example("Rain?", CALLED)], tokenizer(TOOL_TEMPLATE), Template())


def test_a_prefix_is_trained_on_calls() -> None:
    base = BaseModel(tiny_llama(max_position_embeddings=512), tokenizer(TOOL_TEMPLATE), name="tiny")
    prefix = train(base, [Example(FRONT, CALLED)], length=2, steps=30, learning_rate=0.1)
    losses = (base.token_losses([Example(FRONT, CALLED)], p, template=CHAT)[0] for p in (None, prefix))
    before, after = (float(each.mean()) for each in losses)
    assert prefix.template.style == "chat"
    assert after < before
