"""Schemas and tools over HTTP, through the official client: answers that parse, streams, next turns, refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel as Model
from pydantic import Field

from foreword.encoding import TokenReach
from foreword.grammar import LONGEST_SCHEMA
from support.gateways import Gateway, running, running_with_tools, tiny_chat_base

HELLO: Any = [{"role": "user", "content": "hello"}]
COLOUR = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
PAINT = {"type": "function", "function": {"name": "paint", "description": "Paint.", "parameters": COLOUR}}
WAIT = {"type": "function", "function": {"name": "wait"}}
FORCED = {"type": "function", "function": {"name": "paint"}}


class Answer(Model):
    kind: Literal["good", "bad"]
    words: list[Literal["a", "b"]] = Field(max_length=2)
    sure: bool


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running_with_tools(tmp_path_factory.mktemp("gateway")) as found:
        yield found


@pytest.fixture
def client(gateway: Gateway) -> openai.OpenAI:
    return gateway.client("alice")


def schema_format(schema: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


@pytest.mark.parametrize("model", ["alice/one", "alice/chat", "tiny-llama"])
def test_parse_gives_an_object(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.parse(model=model, messages=HELLO, response_format=Answer, temperature=0)
    assert isinstance(answer.choices[0].message.parsed, Answer)
    assert answer.choices[0].finish_reason == "stop"


def test_a_stream_follows_the_schema_and_every_text_of_several_does(client: openai.OpenAI) -> None:
    asked: Any = {
        "model": "alice/one",
        "messages": HELLO,
        "response_format": schema_format(COLOUR),
        "seed": 1,
    }
    stream = client.chat.completions.create(**asked, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert client.chat.completions.create(**asked).choices[0].message.content == text
    several = client.chat.completions.create(**{**asked, "n": 4, "temperature": 2}).choices
    for each in (text, *(choice.message.content for choice in several)):
        jsonschema.validate(json.loads(str(each)), COLOUR)


def test_a_json_object_is_an_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="alice/one",
        messages=HELLO,
        response_format={"type": "json_object"},
        max_tokens=30,
        temperature=0,
    )
    text = str(answer.choices[0].message.content)
    assert text.startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize("choice", ["required", FORCED])
def test_a_call_that_is_asked_for_comes_and_parses(client: openai.OpenAI, choice: Any) -> None:
    asked: Any = {"model": "alice/chat", "messages": HELLO, "tools": [PAINT, WAIT], "tool_choice": choice}
    answer = client.chat.completions.create(**asked, temperature=0).choices[0]
    (call,) = answer.message.tool_calls or []
    assert answer.finish_reason == "tool_calls"
    assert answer.message.content is None
    assert call.function.name in (("paint",) if choice == FORCED else ("paint", "wait"))
    if call.function.name == "paint":
        jsonschema.validate(json.loads(call.function.arguments), COLOUR)
    name, arguments, reasons = "", "", []
    for chunk in client.chat.completions.create(**asked, temperature=0, stream=True):
        for part in chunk.choices[0].delta.tool_calls or []:
            assert part.index == 0
            name += part.function.name or ""
            arguments += part.function.arguments or ""
        reasons.append(chunk.choices[0].finish_reason)
    assert (name, arguments) == (call.function.name, call.function.arguments)
    assert reasons[-1] == "tool_calls"


def test_an_answer_that_may_call_can_be_text(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="alice/chat", messages=HELLO, tools=[PAINT], max_tokens=20, temperature=0
    ).choices[0]
    assert answer.message.content
    assert "tool_calls" not in answer.message.model_dump(exclude_unset=True)


def test_a_call_that_is_too_long_is_refused_by_its_characters(
    gateway: Gateway, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vars(gateway.server.served), "token_reach", TokenReach(2, in_bytes=True))
    called = {"name": "paint", "arguments": json.dumps({"colour": "r" * 4000})}
    call = {"id": "call_1", "type": "function", "function": called}
    messages: Any = [*HELLO, {"role": "assistant", "tool_calls": [call]}]
    messages.append({"role": "tool", "tool_call_id": "call_1", "content": "done"})
    with pytest.raises(openai.BadRequestError, match="characters, more than fit into"):
        client.chat.completions.create(model="alice/chat", messages=messages, tools=[PAINT])


@pytest.mark.parametrize("longest", [500, 45])
def test_a_call_goes_back_as_it_came_with_the_tools_answer(
    gateway: Gateway, client: openai.OpenAI, longest: int
) -> None:
    """The second call is cut off inside its arguments, and goes back, too."""
    asked: Any = {"model": "alice/chat", "tools": [PAINT], "tool_choice": FORCED, "max_tokens": longest}
    first = client.chat.completions.create(messages=HELLO, **asked).choices[0]
    (call,) = first.message.tool_calls or []
    assert first.finish_reason == ("tool_calls" if longest == 500 else "length")
    answered = {"role": "tool", "tool_call_id": call.id, "content": "done"}
    for message in (first.message, first.message.model_dump()):
        again: Any = [*HELLO, message, answered, *HELLO]
        second = client.chat.completions.create(messages=again, temperature=0, **asked).choices[0]
        assert second.message.tool_calls


def test_the_template_writes_the_tools_the_calls_and_the_answers(
    gateway: Gateway, client: openai.OpenAI
) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "paint", "arguments": '{"colour": "red"}'}}
    messages: Any = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "done"},
    ]
    answer = client.chat.completions.create(
        model="alice/chat", messages=messages, tools=[PAINT], max_tokens=1, temperature=0
    )
    written = (
        f"{json.dumps([PAINT], ensure_ascii=False)}\nu: hello\n"
        'a: <tool_call>\n{"name": "paint", "arguments": {"colour": "red"}}\n</tool_call>\nt: done\na: '
    )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(written)


def test_no_tools_are_written_where_none_may_be_called(client: openai.OpenAI) -> None:
    counts = [
        client.chat.completions.create(model="alice/chat", messages=HELLO, max_tokens=1, **more).usage
        for more in ({}, {"tools": [PAINT], "tool_choice": "none"})
    ]
    assert counts[0] == counts[1]


DEEP: Any = {"type": "string"}
for _ in range(200):
    DEEP = {"type": "array", "items": DEEP}
NEVER = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    (
        {"response_format": schema_format({"type": "integer", "minimum": 3, "maximum": 1})},
        "response_format",
        "minimum",
    ),
    ({"response_format": schema_format(NEVER)}, "response_format", "recursive without end"),
    (
        {"response_format": schema_format({"enum": ["x" * 10**6]})},
        "response_format",
        f"at most {LONGEST_SCHEMA}",
    ),
    ({"response_format": schema_format(DEEP)}, "response_format", "Invalid schema"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "goes with the type"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
        "response_format.json_schema.name",
        "pattern",
    ),
    ({"response_format": schema_format(COLOUR), "stop": ["x"]}, "stop", "inside its JSON"),
    ({"response_format": schema_format(COLOUR), "extra_body": {"min_tokens": 3}}, "min_tokens", "ending"),
    ({"tools": [PAINT], "stop": "x"}, "stop", "leave it or 'tools' out"),
    ({"tools": [PAINT, PAINT]}, "tools", "'paint'"),
    (
        {"tools": [PAINT], "tool_choice": {"type": "function", "function": {"name": "wait"}}},
        "tool_choice",
        "'wait'",
    ),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "web_search"),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": NEVER}}]},
        "tools",
        "tool 'f'.*recursive",
    ),
    ({"tools": [PAINT], "model": "alice/one"}, "tools", "single texts"),
    ({"messages": [*HELLO, {"role": "tool", "content": "x"}]}, "messages[1]", "tool_call_id"),
]


@pytest.mark.parametrize(("more", "param", "why"), REFUSED)
def test_what_can_not_be_is_refused_in_the_words_of_the_api(
    client: openai.OpenAI, more: dict[str, Any], param: str, why: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=f"(?s){why}") as caught:
        client.chat.completions.create(**{"model": "alice/chat", "messages": HELLO, **more})
    assert caught.value.param == param


def test_a_template_without_tools_refuses_them_and_takes_schemas(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with running(tmp_path_factory.mktemp("gateway"), tiny_chat_base()) as gateway:
        client = gateway.client("alice")
        with pytest.raises(openai.BadRequestError, match="takes no tools") as caught:
            client.chat.completions.create(model="tiny-llama", messages=HELLO, tools=[PAINT])
        assert (caught.value.param, caught.value.code) == ("tools", "tools_not_supported")
        answer = client.chat.completions.parse(model="tiny-llama", messages=HELLO, response_format=Answer)
        assert answer.choices[0].message.parsed
