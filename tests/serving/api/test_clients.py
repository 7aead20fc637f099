"""What clients send without being asked: answers given back whole, empty fields, requests of browsers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args, get_origin

import httpx
import openai
import pytest

from foreword.sampling import UNFINISHED
from foreword.serving.api.schemas import AnswerMessage
from foreword.serving.requests import ChatBody, ChatMessage, CompletionBody
from support.gateways import Gateway, running, tiny_chat_base
from support.stand_ins import random_prefix

HELLO: Any = [{"role": "user", "content": "hello"}]
PAGE = "http://localhost:3000"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running(tmp_path_factory.mktemp("gateway"), tiny_chat_base(), cors_origins=PAGE) as found:
        found.store.put("alice/one", random_prefix(found.base, 5))
        yield found


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> openai.OpenAI:
    return gateway.client("alice")


def test_an_answer_goes_back_whole_in_the_next_turn(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny-llama", "max_tokens": 4, "temperature": 0}
    first = client.chat.completions.create(**asked, messages=HELLO).choices[0].message
    plain = [*HELLO, {"role": "assistant", "content": first.content}, *HELLO]
    expected = client.chat.completions.create(**asked, messages=plain).choices[0].message.content
    for given_back in (first, first.model_dump(), first.to_dict()):
        answer = client.chat.completions.create(**asked, messages=[*HELLO, given_back, *HELLO])  # type: ignore[list-item]
        assert answer.choices[0].message.content == expected


def values_of(annotation: Any) -> list[Any]:
    """A value of each type that a field of an answer may have."""
    if annotation is None or annotation is type(None):
        return [None]
    if annotation is str:
        return ["", "text"]
    parts = get_args(annotation)
    if get_origin(annotation) in (list, dict):
        return [[] if get_origin(annotation) is list else {}]
    deeper = [isinstance(part, type) or get_origin(part) is not None for part in parts]
    given = zip(parts, deeper, strict=True)
    return [value for part, goes_on in given for value in (values_of(part) if goes_on else [part])]


def test_every_field_of_an_answers_message_is_taken_back() -> None:
    """Whatever fields the schema of answers has or will have."""
    message = {"role": "assistant", "content": "x"}
    for name, field in AnswerMessage.model_fields.items():
        values = values_of(field.annotation)
        assert values, name
        for value in values:
            ChatBody.model_validate({"model": "m", "messages": [*HELLO, {**message, name: value}]})


EMPTY: list[Any] = [None, [], {}, ""]


@pytest.mark.parametrize(
    "field",
    [
        "tools",
        "tool_choice",
        "functions",
        "parallel_tool_calls",
        "reasoning_effort",
        "response_format",
        "audio",
        "prediction",
        "web_search_options",
        "logit_bias",
        "verbosity",
        "modalities",
        "a_field_of_next_year",
    ],
)
def test_a_field_that_is_null_or_empty_asks_for_nothing(field: str) -> None:
    for value in EMPTY:
        ChatBody.model_validate({"model": "m", "messages": HELLO, field: value})
        CompletionBody.model_validate({"model": "m", "prompt": "x", field: value})
        for inner in ("refusal", "annotations", "audio", "function_call", "tool_calls", field):
            ChatMessage.model_validate({"role": "assistant", "content": "x", inner: value})
            part = {"type": "text", "text": "x", inner: value}
            ChatMessage.model_validate({"role": "user", "content": [part]})


def test_fields_at_values_that_change_nothing_are_taken(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny-llama", "max_tokens": 4, "temperature": 0, "messages": HELLO}
    expected = client.chat.completions.create(**asked).choices[0].message.content
    same: Any = {
        **{
            "tool_choice": "none",
            "parallel_tool_calls": True,
            "modalities": ["text"],
            "stop": [],
            "stream_options": {},
            "store": False,
        },
        **{
            "response_format": {"type": "text"},
            "service_tier": "auto",
            "logit_bias": {},
            "presence_penalty": 0,
        },
        **{
            "frequency_penalty": 0.0,
            "user": "u",
            "metadata": {"a": "b"},
            "top_p": 1,
            "n": 1,
            "logprobs": False,
        },
    }
    assert client.chat.completions.create(**asked, **same).choices[0].message.content == expected
    nulls: Any = dict.fromkeys([*ChatBody.model_fields.keys() - {"model", "messages"}, *same])
    again = client.chat.completions.create(
        **{**asked, "extra_body": {**nulls, "max_tokens": 4, "temperature": 0}}
    )
    assert again.choices[0].message.content == expected


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant"])
def test_content_of_every_role_may_come_in_parts(role: str) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert ChatMessage.model_validate({"role": role, "content": parts}).text == "ab"


def test_head_is_answered_as_get_without_a_body(gateway: Gateway) -> None:
    headers = {"Authorization": f"Bearer {gateway.key('alice')}"}
    for path in ("/healthz", "/readyz", "/v1/models", "/v1/models/alice/one"):
        head = httpx.head(gateway.url + path, headers=headers)
        get = httpx.get(gateway.url + path, headers=headers)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == get.headers["content-length"]
    assert httpx.head(f"{gateway.url}/v1/models").status_code == 401
    assert httpx.head(f"{gateway.url}/v1/completions", headers=headers).status_code == 405


def test_the_list_of_models_is_there_with_a_slash_behind_it(gateway: Gateway) -> None:
    headers = {"Authorization": f"Bearer {gateway.key('alice')}"}
    lists = [httpx.get(f"{gateway.url}/v1/models{slash}", headers=headers).json() for slash in ("", "/")]
    assert lists[0] == lists[1]
    assert [model["id"] for model in lists[0]["data"]] == ["tiny-llama", "alice/one"]


def preflight(gateway: Gateway, origin: str) -> httpx.Response:
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    return httpx.options(f"{gateway.url}/v1/chat/completions", headers={"Origin": origin, **asked})


def test_pages_of_an_allowed_origin_may_ask(gateway: Gateway) -> None:
    answer = preflight(gateway, PAGE)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "authorization" in answer.headers["access-control-allow-headers"].lower()
    assert "access-control-allow-credentials" not in answer.headers
    for key, status in ((gateway.key("alice"), 200), ("fw_wrong", 401)):  # a page can read errors, too
        headers = {"Origin": PAGE, "Authorization": f"Bearer {key}"}
        answer = httpx.get(f"{gateway.url}/v1/models", headers=headers)
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()


def test_pages_of_other_origins_may_not(gateway: Gateway, tmp_path: Any) -> None:
    assert "access-control-allow-origin" not in preflight(gateway, "http://other.example").headers
    headers = {"Origin": "http://other.example", "Authorization": f"Bearer {gateway.key('alice')}"}
    assert "access-control-allow-origin" not in httpx.get(f"{gateway.url}/v1/models", headers=headers).headers
    with running(tmp_path, tiny_chat_base()) as closed:
        assert preflight(closed, PAGE).status_code == 401  # as any other request without a key


def test_without_keys_an_allowed_page_passes_where_others_are_refused(tmp_path: Any) -> None:
    with running(tmp_path, tiny_chat_base(), keys=False, cors_origins=PAGE) as open_one:
        site = {"Sec-Fetch-Site": "cross-site"}
        allowed = httpx.get(f"{open_one.url}/v1/models", headers={"Origin": PAGE, **site})
        other = httpx.get(f"{open_one.url}/v1/models", headers={"Origin": "http://other.example", **site})
        assert (allowed.status_code, other.status_code) == (200, 403)
        assert allowed.headers["access-control-allow-origin"] == PAGE


def test_logprobs_have_the_bytes_of_parts_of_characters(gateway: Gateway) -> None:
    """A prompt of one emoji, and the tokens of another as what the engine says."""
    from foreword.serving.engine.detokenizer import RowText, spell
    from foreword.serving.engine.protocol import Token
    from support.tokenizers_of_all_kinds import ALL_KINDS

    text = "a😀é a"
    for kind in ("byte-level BPE", "byte fallback"):
        tokenizer = ALL_KINDS[kind]
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        row = RowText(tokenizer, 0, frozenset({0}), ())
        told = []
        for place, identifier in enumerate(ids):
            last = place == len(ids) - 1
            likeliest = tuple((each, -1.0 - each) for each in ids[:5])
            piece = row.add(Token(identifier, -1.0, likeliest, "length" if last else None))
            told += piece.logprobs if piece is not None else []
        assert len(told) == len(ids)
        joined = b"".join(token.spelling.bytes for token in told)
        assert joined.decode().lstrip() == text
        assert sum(UNFINISHED in token.spelling.text for token in told) >= 4
        whole = joined.decode()
        for place, token in enumerate(told):  # compared with the characters that end before it
            before = b"".join(one.spelling.bytes for one in told[:place])
            assert token.offset == len(before.decode(errors="ignore"))
            assert token.offset <= len(whole)
        keys = [spell(tokenizer, each).key for each in dict.fromkeys(ids)]
        assert len(set(keys)) == len(keys)
        assert "bytes:\\xf0" in keys
