"""Bad input: the error form of OpenAI, the right status, and nothing changed."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from foreword import BaseModel
from support.gateways import Gateway
from support.refusals import error
from support.stand_ins import byte_tokenizer, random_prefix, tiny_llama

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
JOBS = "/v1/fine_tuning/jobs"
HELLO = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, JOBS])
@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000, b"{'a': 1}"]
)
def test_what_is_no_json_object_is_refused(http: httpx.Client, path: str, body: bytes) -> None:
    found = error(http.post(path, content=body, headers={"content-type": "application/json"}), 400)
    assert found["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": 1e9}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_p": -0.1}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": -3}, "n"),
        ({"n": 100}, "n"),
        ({"n": 10**30}, "n"),
        ({"n": 1.5}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 10**12}, "max_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"seed": 2**70}, "seed"),
        ({"seed": "x"}, "seed"),
        ({"stop": ["x"] * 100}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"kv_transfer_params": {"x": 1}}, "kv_transfer_params"),
        ({"cache_salt": "x"}, "cache_salt"),
        ({"stream_options": {"include_usage": True}}, None),
    ],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_parameters_out_of_range_and_unknown_fields_are_named(
    http: httpx.Client, path: str, change: dict[str, Any], param: str | None
) -> None:
    text = {"messages": HELLO} if path == CHAT else {"prompt": "hello"}
    found = error(http.post(path, json={"model": "alice/one", **text, **change}), 400)
    assert re.split(r"[.\[]", found["param"] or "")[0] == (param or "")
    assert "Traceback" not in found["message"]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("name", ["temperature", "top_p", "max_tokens", "n"])
def test_numbers_that_are_none_are_refused(http: httpx.Client, name: str, value: str) -> None:
    body = f'{{"model": "alice/one", "prompt": "hello", "{name}": {value}}}'
    error(http.post(COMPLETIONS, content=body, headers={"content-type": "application/json"}), 400)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "user"}],
        [{"role": "king", "content": "x"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "user", "content": "x", "extra": 1}],
        "hello",
        [{"role": "assistant", "content": "x"}],
    ],
)
def test_messages_that_are_none_are_refused(http: httpx.Client, messages: Any) -> None:
    found = error(http.post(CHAT, json={"model": "alice/one", "messages": messages}), 400)
    assert found["param"].startswith("messages")


@pytest.mark.parametrize("prompt", [[], [[]], [-1], [97], [[3, 10**6]], ["a", 3], {"a": 1}, None])
def test_prompts_that_are_none_are_refused(http: httpx.Client, prompt: Any) -> None:
    error(http.post(COMPLETIONS, json={"model": "alice/one", "prompt": prompt}), 400)


def test_half_an_emoji_is_refused(http: httpx.Client) -> None:
    body = b'{"model": "alice/one", "prompt": "\\ud83d"}'
    error(http.post(COMPLETIONS, content=body, headers={"content-type": "application/json"}), 400)
    body = b'{"model": "\\ud83d/x", "prompt": "a"}'
    error(http.post(COMPLETIONS, content=body, headers={"content-type": "application/json"}), 400)


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_of_100000_tokens_does_not_fit(http: httpx.Client, stream: bool) -> None:
    body = {"model": "alice/one", "prompt": "x" * 100_000, "stream": stream}
    found = error(http.post(COMPLETIONS, json=body), 400)
    assert found["code"] == "context_length_exceeded"
    assert "251 tokens" in found["message"]
    body = {"model": "alice/one", "messages": [{"role": "user", "content": "x" * 100_000}], "stream": stream}
    assert error(http.post(CHAT, json=body), 400)["code"] == "context_length_exceeded"


def test_huge_bodies_are_not_read(http: httpx.Client) -> None:
    body = b'{"model": "' + b"x" * (3 << 20) + b'"}'
    assert error(http.post(CHAT, content=body), 413)["code"] == "request_too_large"

    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 100_000

    headers = {"content-type": "application/json"}
    assert error(http.post(CHAT, content=endless(), headers=headers), 413)["code"] == "request_too_large"


@pytest.mark.parametrize(
    "name",
    [
        *("nobody/one", "bob/one", "bob/one@1", "alice/none", "alice/one@9", "alice/one@label", "gpt-4o"),
        *(
            "../etc/passwd",
            "alice/../bob/one",
            "alice/one\x00",
            "a" * 300,
            "alice/one@sha256:00000000",
            "é/é",
        ),
    ],
)
def test_unknown_and_other_peoples_models_look_the_same(http: httpx.Client, name: str) -> None:
    asked = [
        http.post(CHAT, json={"model": name, "messages": HELLO}),
        http.post(COMPLETIONS, json={"model": name, "prompt": "x"}),
        http.post(JOBS, json={"model": name, "training_file": "file-x"}),
    ]
    for response in asked:
        found = error(response, 404)
        assert (found["code"], found["param"]) == ("model_not_found", "model")
        assert "bob" not in found["message"].replace(ascii(name), "")


@pytest.mark.parametrize("name", ["bob/one", "bob/one@1", "bob/none"])
def test_other_peoples_prefixes_can_be_neither_read_nor_deleted(http: httpx.Client, name: str) -> None:
    for method, path in (
        *(("GET", f"/v1/models/{name}"), ("DELETE", f"/v1/models/{name}")),
        *(("GET", f"/v1/prefixes/{name}"), ("GET", f"/v1/prefixes/{name}/content")),
        ("DELETE", f"/v1/prefixes/{name}"),
    ):
        assert error(http.request(method, path), 404)["code"] == "model_not_found"


def test_a_prefix_of_another_base_is_refused(gateway: Gateway, http: httpx.Client) -> None:
    other = BaseModel(tiny_llama(seed=3), byte_tokenizer(), name="other")
    foreign = random_prefix(other, 5)
    response = http.post("/v1/prefixes", data={"name": "foreign"}, files={"file": foreign.to_bytes()})
    assert "other" in error(response, 400)["message"]


def test_a_stored_prefix_of_another_base_is_not_listed_and_refused(
    gateway: Gateway, http: httpx.Client
) -> None:
    other = BaseModel(tiny_llama(seed=3), byte_tokenizer(), name="other")
    gateway.store.put("alice/foreign", random_prefix(other, 5))
    assert [m["id"] for m in http.get("/v1/models").json()["data"]] == ["tiny-llama", "alice/one"]
    error(http.get("/v1/models/alice/foreign"), 404)
    found = error(http.post(CHAT, json={"model": "alice/foreign", "messages": HELLO}), 400)
    assert found["code"] == "wrong_base_model"
    assert "trained for this server's base" in found["message"]  # no command, no call in Python
    # Where the two bases are declared equivalent, it is listed like any other.
    served = gateway.server.served
    gateway.server.served = dataclasses.replace(served, equivalent=frozenset({other.fingerprint}))
    assert http.get("/v1/models/alice/foreign").json()["id"] == "alice/foreign"
    gateway.server.served = served
    gateway.store.delete("alice/foreign", all_versions=True)


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer nonsense", "Basic abc", "fw_x"])
def test_a_missing_or_wrong_key_is_401(gateway: Gateway, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    for path in ("/v1/models", "/v1/files", "/v1/models/alice/one"):
        response = httpx.get(gateway.url + path, headers=headers)
        assert error(response, 401)["type"] == "authentication_error"
        assert response.headers["www-authenticate"] == "Bearer"
    # Before anything else of the request is looked at.
    error(httpx.post(gateway.url + CHAT, content=b"{", headers=headers), 401)


def test_a_revoked_key_is_refused_at_once(gateway: Gateway) -> None:
    key = gateway.store.create_key("alice", "owner")
    client = gateway.client(key=key.secret)
    assert client.models.list().data
    gateway.store.revoke_key(key.record.id)
    with pytest.raises(openai.AuthenticationError):
        client.models.list()


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/none", "/v1/files/../../etc/passwd", "/v1/files/%2e%2e%2fx"]
)
def test_there_is_nothing_elsewhere(http: httpx.Client, path: str) -> None:
    error(http.get(path), 404)
    found = error(http.put(CHAT, json={}), 405)
    assert found["code"] == "method_not_allowed"


def test_a_damaged_file_is_an_error_and_no_text(gateway: Gateway, http: httpx.Client) -> None:
    version = gateway.store.put("alice/broken", random_prefix(gateway.base, 5, seed=7))
    folder = gateway.server.configuration.store
    (blob,) = Path(folder).glob(f"blobs/*/{version.digest}*")
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    found = error(http.post(CHAT, json={"model": "alice/broken", "messages": HELLO}), 500)
    assert found["code"] == "damaged_prefix"
    assert found["message"].endswith("Ask the administrator to restore it")
    assert folder not in found["message"]
    assert version.digest[:12] not in found["message"]
    gateway.store.delete("alice/broken", all_versions=True)
