"""/v1/responses through the official client: the chat's answer as items, streams, JSON, calls, and refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel as Model

from support.gateways import Gateway, running_with_tools

COLOUR = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}},
    "required": ["colour"],
    "additionalProperties": False,
}
PAINT: Any = {
    "type": "function",
    "name": "paint",
    "description": "Paint.",
    "parameters": COLOUR,
    "strict": True,
}
SHORT: Any = {"max_output_tokens": 8, "temperature": 0}


class Answer(Model):
    kind: Literal["good", "bad"]
    sure: bool


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running_with_tools(tmp_path_factory.mktemp("gateway")) as found:
        yield found


@pytest.fixture
def client(gateway: Gateway) -> openai.OpenAI:
    return gateway.client("alice")


def in_chat(client: openai.OpenAI, messages: Any, model: str = "alice/chat", **more: Any) -> Any:
    settings: Any = {"max_tokens": 8, "temperature": 0, **more}
    return client.chat.completions.create(model=model, messages=messages, **settings)


def test_a_response_is_the_chats_answer_with_its_usage(gateway: Gateway, client: openai.OpenAI) -> None:
    response = client.responses.create(model="alice/chat", input="hello", instructions="be brief", **SHORT)
    chat = in_chat(client, [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}])
    assert response.output_text == chat.choices[0].message.content
    assert response.output_text
    used, usage = response.usage, chat.usage
    assert used is not None
    assert (used.input_tokens, used.output_tokens, used.total_tokens) == (
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.total_tokens,
    )
    cut = chat.choices[0].finish_reason == "length"
    assert response.status == ("incomplete" if cut else "completed")
    assert (response.incomplete_details is not None) == cut
    if response.incomplete_details is not None:
        assert response.incomplete_details.reason == "max_output_tokens"
    assert (response.instructions, response.store) == ("be brief", False)


def test_items_that_were_sent_and_those_that_came_go_back(client: openai.OpenAI) -> None:
    part = {"type": "input_text", "text": "hello"}
    asked: Any = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": [part]}]
    first = client.responses.create(model="alice/chat", input=asked, **SHORT)
    again: list[Any] = [{"role": "user", "content": "more"}]
    whole = [*asked, *(item.model_dump() for item in first.output), *again]
    second = client.responses.create(model="alice/chat", input=whole, **SHORT)
    plain = client.responses.create(model="alice/chat", input=[*asked, *first.output, *again], **SHORT)
    history: Any = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "more"},
    ]
    assert second.output_text == plain.output_text == in_chat(client, history).choices[0].message.content


def test_a_stream_has_the_events_that_the_client_builds_the_response_from(client: openai.OpenAI) -> None:
    whole = client.responses.create(model="alice/chat", input="hello", **SHORT)
    events = list(client.responses.create(model="alice/chat", input="hello", stream=True, **SHORT))
    kinds = [event.type for event in events]
    deltas = [kind for kind in kinds if kind == "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *deltas,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        f"response.{whole.status}",
    ]
    assert deltas
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last: Any = events[-1]
    assert last.response.output_text == whole.output_text
    assert last.response.usage == whole.usage
    added: Any = events[2]
    assert (added.item.content, added.item.status) == ([], "in_progress")
    with client.responses.stream(model="alice/chat", input="hello", **SHORT) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert text == whole.output_text


def test_parse_gives_an_object_whole_and_streamed(client: openai.OpenAI) -> None:
    asked: Any = {"model": "alice/chat", "input": "hello", "text_format": Answer, "temperature": 0}
    response = client.responses.parse(**asked)
    assert isinstance(response.output_parsed, Answer)
    assert response.status == "completed"
    assert response.text is not None
    with client.responses.stream(**asked) as stream:
        assert stream.get_final_response().output_parsed == response.output_parsed
    back: Any = [{"role": "user", "content": "hello"}, *response.output, {"role": "user", "content": "more"}]
    assert client.responses.create(model="alice/chat", input=back, **SHORT).output_text is not None


def test_json_objects_are_objects(client: openai.OpenAI) -> None:
    kind: Any = {"format": {"type": "json_object"}}
    response = client.responses.create(
        model="alice/one", input="hello", text=kind, temperature=0, max_output_tokens=30
    )
    assert response.output_text.startswith("{")


def test_calls_are_items_whose_answers_go_back(client: openai.OpenAI) -> None:
    asked: Any = {"model": "alice/chat", "tools": [PAINT], "tool_choice": "required", "temperature": 0}
    first = client.responses.create(input="hello", **asked)
    (call,) = first.output
    assert call.type == "function_call"
    assert (call.name, call.status, first.status) == ("paint", "completed", "completed")
    jsonschema.validate(json.loads(call.arguments), COLOUR)
    events = list(client.responses.create(input="hello", stream=True, **asked))
    kinds = [event.type for event in events if event.type != "response.function_call_arguments.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    done: Any = events[-3]
    assert (done.name, done.arguments) == ("paint", call.arguments)
    answered: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
    back: Any = [{"role": "user", "content": "hello"}, *first.output, answered]
    chosen: Any = {**asked, "tool_choice": {"type": "function", "name": "paint"}}
    second = client.responses.create(input=back, **chosen)
    in_chats_words: Any = {
        "type": "function",
        "function": {k: PAINT[k] for k in ("name", "description", "parameters")},
    }
    message: Any = {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "paint", "arguments": call.arguments}}
        ],
    }
    history: Any = [
        {"role": "user", "content": "hello"},
        message,
        {"role": "tool", "tool_call_id": "c", "content": "done"},
    ]
    chat = in_chat(client, history, tools=[in_chats_words], tool_choice="required", max_tokens=200)
    assert second.usage is not None
    assert second.usage.input_tokens == chat.usage.prompt_tokens
    assert isinstance(second.output[0], openai.types.responses.ResponseFunctionToolCall)
    assert second.output[0].arguments == chat.choices[0].message.tool_calls[0].function.arguments


def test_log_probabilities_come_where_they_are_asked_for(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model="alice/chat", input="hello", include=["message.output_text.logprobs"], top_logprobs=2, **SHORT
    )
    chat = in_chat(client, [{"role": "user", "content": "hello"}], logprobs=True, top_logprobs=2)
    part: Any = response.output[0].content[0]  # type: ignore[union-attr,index]
    assert [t.logprob for t in part.logprobs] == pytest.approx(
        [t.logprob for t in chat.choices[0].logprobs.content]
    )
    assert all(len(token.top_logprobs) == 2 for token in part.logprobs)


def test_log_probabilities_of_a_stream_are_those_of_the_whole(client: openai.OpenAI) -> None:
    asked: Any = {
        "model": "alice/chat",
        "input": "hello",
        "include": ["message.output_text.logprobs"],
        **SHORT,
    }
    events = list(client.responses.create(**asked, stream=True))
    (added,) = (event.part for event in events if event.type == "response.content_part.added")
    assert added.logprobs == []
    pieces = [t for event in events if event.type == "response.output_text.delta" for t in event.logprobs]
    (done,) = (event for event in events if event.type == "response.output_text.done")
    assert [t.logprob for t in done.logprobs[: len(pieces)]] == [t.logprob for t in pieces]
    whole: Any = client.responses.create(**asked).output[0]
    assert [t.logprob for t in done.logprobs] == [t.logprob for t in whole.content[0].logprobs]


@pytest.mark.parametrize(
    "more", [{"store": False}, {"truncation": "disabled"}, {"reasoning": {"effort": None}}]
)
def test_what_asks_for_nothing_is_accepted(client: openai.OpenAI, more: Any) -> None:
    nothing: Any = {"previous_response_id": None, "tools": [], "include": [], "background": False}
    client.responses.create(model="alice/chat", input="hello", **SHORT, **nothing, **more)


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"store": True}, "store", "stores no responses"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "stores no responses"),
        (
            {"tools": [{"type": "web_search"}]},
            "tools[0].type",
            "'web_search'.*Supported values are: 'function'",
        ),
        ({"background": True}, "background", "'background' is not supported"),
        ({"conversation": "conv_1"}, "conversation", "'conversation' is not supported"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort", "effort"),
        ({"truncation": "auto"}, "truncation", "'truncation' is not supported"),
        ({"max_tokens": 5}, "max_tokens", "Unknown parameter|not supported"),
        ({"max_output_tokens": 0}, "max_output_tokens", ">= 1"),
        ({"input": []}, "input", "at least 1 items"),
        ({"input": "a" * 5000}, "input", "Shorten it"),
        ({"input": [{"role": "user"}]}, "input[0]", "'content' of an item of type 'message'"),
        ({"input": [{"type": "function_call", "call_id": "c"}]}, "input[0]", "'name'"),
        ({"input": [{"type": "reasoning", "id": "rs_1"}]}, "input[0].type", "'reasoning'"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0].type",
            "input_image",
        ),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format", "'schema'"),
        (
            {"text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "nothing"}}}},
            "text.format",
            "Invalid schema for 'text.format'",
        ),
        ({"tool_choice": "required"}, "tool_choice", "there are no 'tools'"),
        ({"model": "bob/none"}, "model", "does not exist"),
    ],
)
def test_what_is_not_there_is_refused_by_its_name(
    client: openai.OpenAI, body: Any, param: str, message: str
) -> None:
    asked: Any = {"model": "alice/chat", "input": "hello", **body}
    with pytest.raises((openai.BadRequestError, openai.NotFoundError), match=message) as refused:
        client.post("/responses", body=asked, cast_to=object)
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"


def test_a_stream_that_breaks_says_that_it_failed(gateway: Gateway, client: openai.OpenAI) -> None:
    gateway.engine.pause = 0.05
    try:
        stream = client.responses.create(
            model="alice/chat", input="hello", max_output_tokens=200, temperature=0, stream=True
        )
        kinds = []
        for event in stream:
            kinds.append(event.type)
            gateway.engine.stopped = True
            last: Any = event
    finally:
        gateway.engine.pause, gateway.engine.stopped = 0.0, False
    assert kinds[-1] == "response.failed"
    assert last.response.status == "failed"
    assert last.response.error.code == "server_error"
