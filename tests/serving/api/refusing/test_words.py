"""What is wrong with a request is said in the API's words, of the field that a caller has to look at."""

from __future__ import annotations

import gzip
import json
import re
from typing import Any

import httpx
import pytest

from support.refusals import error

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]
IMAGE = {"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}


@pytest.mark.parametrize(
    ("change", "param", "code", "message"),
    [
        (
            {"temperature": "hot"},
            "temperature",
            "invalid_type",
            "Invalid type for 'temperature': expected a number, but got a string instead.",
        ),
        (
            {"temperature": 3},
            "temperature",
            "decimal_above_max_value",
            "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 3 instead.",
        ),
        (
            {"n": 0},
            "n",
            "integer_below_min_value",
            "Invalid 'n': integer below minimum value. Expected a value >= 1, but got 0 instead.",
        ),
        ({"n": 1.5}, "n", "invalid_type", "expected an integer, but got a decimal instead."),
        ({"stream": "yes"}, "stream", "invalid_type", "expected a boolean, but got a string instead."),
        (
            {"stop": list("abcde")},
            "stop",
            "array_above_max_length",
            "Invalid 'stop': array too long. Expected at most 4 items, but got 5 instead.",
        ),
        ({"stop": [""]}, "stop[0]", "string_below_min_length", "Invalid 'stop[0]': string too short."),
        ({"stop": 5}, "stop", "invalid_type", "expected one of a string or an array, but got an integer"),
        (
            {"model": None},
            "model",
            "invalid_value",
            "Invalid value for 'model': expected a string, got null.",
        ),
        ({"messages": []}, "messages", "array_below_min_length", "array too short"),
        (
            {"messages": [{"role": "user"}]},
            "messages[0].content",
            "missing_required_parameter",
            "Missing required",
        ),
        (
            {"messages": [{"role": "king", "content": "x"}]},
            "messages[0].role",
            "invalid_value",
            "Invalid value: 'king'. Supported values are: 'system', 'developer', 'user', 'assistant' or 'tool'.",
        ),
        (
            {"messages": [{"role": "user", "content": None}]},
            "messages[0].content",
            "invalid_value",
            "expected one of a string or an array, got null.",
        ),
        (
            {"messages": [{"role": "user", "content": [IMAGE]}]},
            "messages[0].content[0].type",
            "invalid_value",
            "Invalid value: 'image_url' is not supported by this server. Supported values are: 'text'.",
        ),
        (
            {"messages": [{"role": "user", "content": 5}]},
            "messages[0].content",
            "invalid_type",
            "got an integer",
        ),
        ({"messages": "hello"}, "messages", "invalid_type", "expected an array, but got a string instead."),
        (
            {"messages": ["hello"]},
            "messages[0]",
            "invalid_type",
            "expected an object, but got a string instead.",
        ),
        (
            {"tools": [{"type": "function"}]},
            "tools[0].function",
            "missing_required_parameter",
            "Missing required parameter: 'tools[0].function'.",
        ),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value", "there are no 'tools'; give them."),
        (
            {"response_format": {"type": "grammar"}},
            "response_format.type",
            "invalid_value",
            "Supported values are: 'text', 'json_object' or 'json_schema'.",
        ),
        ({"reasoning_effort": "high"}, "reasoning_effort", "unsupported_parameter", "'reasoning_effort'"),
        ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter", "'modalities'"),
        ({"presence_penalty": 1}, "presence_penalty", "unsupported_parameter", "'presence_penalty'"),
        ({"store": True}, "store", "unsupported_parameter", "'store'"),
        (
            {"temprature": 1},
            "temprature",
            "unknown_parameter",
            "Unknown parameter: 'temprature'; leave it out.",
        ),
        ({"messages": [{**HELLO[0], "x": 1}]}, "messages[0].x", "unknown_parameter", "'messages[0].x'"),
        (
            {"stream_options": {"include_usage": True}},
            None,
            "invalid_value",
            "only allowed when 'stream' is enabled.",
        ),
        (
            {"metadata": {"{x} {": 3}},
            "metadata.{x} {",
            "invalid_type",
            "expected a string, but got an integer",
        ),
        (
            {"metadata": {str(i): "" for i in range(17)}},
            "metadata",
            "object_above_max_length",
            "object too long",
        ),
        ({"seed": 2**70}, "seed", "integer_above_max_value", "integer above maximum value"),
    ],
)
def test_a_fault_has_the_words_and_the_code_of_the_api(
    http: httpx.Client, change: dict[str, Any], param: str | None, code: str, message: str
) -> None:
    found = error(http.post(CHAT, json={"model": "alice/one", "messages": HELLO, **change}), 400)
    assert (found["param"], found["code"]) == (param, code)
    assert message in found["message"]


@pytest.mark.parametrize(
    ("prompt", "param", "message"),
    [
        ([-1], "prompt[0]", "Expected a value >= 0, but got -1 instead."),
        (["a", 3], "prompt[1]", "expected one of a string or an array, but got an integer instead."),
        ({"a": 1}, "prompt", "expected one of a string or an array, but got an object instead."),
        (None, "prompt", "expected one of a string or an array, got null."),
        ([], "prompt", "array too short"),
    ],
)
def test_of_a_field_with_several_types_the_one_that_was_meant_is_told(
    http: httpx.Client, prompt: Any, param: str, message: str
) -> None:
    found = error(http.post(COMPLETIONS, json={"model": "alice/one", "prompt": prompt}), 400)
    assert found["param"] == param
    assert message in found["message"]


@pytest.mark.parametrize(
    ("headers", "content", "status", "message"),
    [
        (
            {},
            b"{}",
            415,
            "Unsupported content type: the request has no Content-Type. Send JSON with the header",
        ),
        (
            {"content-type": "application/x-www-form-urlencoded"},
            b"{}",
            415,
            "'application/x-www-form-urlencoded'",
        ),
        ({"content-type": "text/plain"}, b"{}", 415, "'text/plain'"),
        (
            {"content-type": "application/json", "content-encoding": "gzip"},
            gzip.compress(b"{}", mtime=0),
            415,
            "Unsupported content encoding: 'gzip'.",
        ),
        ({"content-type": "application/json"}, b'{"user": "caf\xe9"}', 400, "byte 14 is not UTF-8"),
        ({"content-type": "application/json"}, b"{'a': 1}", 400, "We could not parse the JSON body"),
        ({"content-type": "application/json"}, b"[" * 100_000, 400, "nested too deeply"),
        ({"content-type": "application/json"}, b'{"n": ' + b"1" * 5000 + b"}", 400, "a number is too long"),
        ({"content-type": "application/json"}, b"[]", 400, "expected an object, but got an array instead."),
    ],
)
def test_a_body_that_is_not_json_in_utf_8_is_told_how_to_be(
    http: httpx.Client, headers: dict[str, str], content: bytes, status: int, message: str
) -> None:
    for path in (CHAT, COMPLETIONS, "/v1/fine_tuning/jobs"):
        assert message in error(http.post(path, content=content, headers=headers), status)["message"]


NOT_OVER_HTTP = re.compile(
    r"Input should|after validation|\bforeword [a-z]+\b|`foreword|--[a-z]|\.py\b|\b\w+=(True|False|None|\{|\w+\()|\w\(\)|"
    r"\bPython\b|\bNone\b|/work|/tmp|Traceback|pydantic"
)
"""What a library, Python or the command line would say."""


def test_no_answer_speaks_of_a_library_python_or_the_command_line(http: httpx.Client) -> None:
    def example(**fields: Any) -> bytes:
        return json.dumps(fields).encode() + b"\n"

    message = {"role": "user", "content": "x"}
    uploads = [
        *(example(prompt="a", completion="b"), example(source="a"), example(messages=[]), example(text="a")),
        *(example(messages=[message]), example(messages=[{**message, "role": "tool"}]), b"plain text\n"),
        *(example(source=3, target="b"), example(source="a", target=""), b"a,b\nc,d\n", b"PAR1", b"[1]\n"),
        *(
            b'{"source": NaN, "target": "b"}\n',
            b"\xff\xfe",
            b"source,target\na\n",
            b"x || y || z\n",
            b"\x00" * 9,
        ),
        *(example(messages="x"), example(messages=[3]), example(messages=[message, {"role": "assistant"}])),
        example(source="a", target="b", owner=3),
    ]
    fine = {"purpose": "fine-tune"}
    answers = [http.post("/v1/files", data=fine, files={"file": ("m", content)}) for content in uploads]
    values: list[Any] = [
        None,
        True,
        -1,
        10**30,
        1.5,
        "x",
        "",
        [],
        ["x"],
        [[]],
        {},
        {"x": 1},
        [None],
        "x" * 10_000,
    ]
    fields = {
        CHAT: "messages stream stream_options n stop seed temperature max_tokens min_tokens raw user logprobs "
        "top_logprobs metadata tools response_format",
        COMPLETIONS: "prompt logprobs echo best_of suffix stop seed",
        "/v1/fine_tuning/jobs": "training_file validation_file hyperparameters method seed suffix metadata template "
        "integrations",
    }
    for path, names in fields.items():
        usual = {CHAT: {"messages": HELLO}, COMPLETIONS: {"prompt": ""}}.get(
            path, {"training_file": "file-x"}
        )
        for name in names.split():
            bodies = [{"model": "nobody/none", **usual, name: value} for value in values]
            answers += [http.post(path, json=body) for body in bodies]
    for inner in (
        "init",
        "patience",
        "parameterization",
        "learning_rate",
        "n_epochs",
        "length",
        "layers",
        "x",
    ):
        for value in values:
            job = {"model": "tiny-llama", "training_file": "file-x", "hyperparameters": {inner: value}}
            answers.append(http.post("/v1/fine_tuning/jobs", json=job))
    gets = (
        "/v1/models?limit=x",
        "/v1/models?limit=0",
        "/v1/files?order=x",
        "/v1/none",
        "/v1/files/x",
        "/v1/models/x",
    )
    answers += [http.get(path) for path in gets]
    answers += [
        http.post("/v1/prefixes", data={"name": name}, files={"file": content})
        for name in ("x", "", "bob/x", "a/b/c", "é")
        for content in (b"", b"x" * 100, b"\xff" * 8)
    ]
    wrong = [{"Authorization": value} for value in ("", "Bearer fw_wrong", "Basic x")]
    answers += [http.get("/v1/models", headers=headers) for headers in wrong]
    assert len(answers) > 400
    for answer in answers:
        if answer.status_code == 200:  # a value that asks for nothing
            http.delete(f"/v1/files/{answer.json()['id']}").raise_for_status()
            continue
        found = error(answer, answer.status_code)
        assert not NOT_OVER_HTTP.search(found["message"]), found


@pytest.mark.parametrize(
    ("method", "path", "what"),
    [
        ("POST", "/v1/embeddings", "embeddings"),
        ("POST", "/v1/images/generations", "images"),
        ("POST", "/v1/audio/transcriptions", "audio"),
        ("POST", "/v1/moderations", "moderations"),
        ("GET", "/v1/batches", "batches"),
        ("POST", "/v1/vector_stores/vs_1/search", "vector stores"),
        ("GET", "/v1/assistants?limit=1", "assistants"),
        ("POST", "/v1/threads", "threads"),
        ("POST", "/v1/uploads", "uploads in parts"),
        ("GET", "/v1/responses/resp_1", "stored responses"),
        ("DELETE", "/v1/chat/completions/chatcmpl-1", "stored chat completions"),
        ("POST", "/v1/fine_tuning/alpha/graders/run", "graders"),
        ("GET", "/v1/fine_tuning/checkpoints/x/permissions", "permissions on checkpoints"),
    ],
)
def test_what_others_have_is_said_to_be_not_here(
    http: httpx.Client, method: str, path: str, what: str
) -> None:
    found = error(http.request(method, path), 404)
    assert (found["type"], found["code"]) == ("invalid_request_error", "unknown_url")
    assert found["message"].startswith(f"Unknown request URL: '{method} {path.partition('?')[0]}'. ")
    assert f"This server has no {what};" in found["message"]


def test_a_path_that_nobody_has_is_said_to_be_unknown(http: httpx.Client) -> None:
    for path in ("/v1/none", "/none", "/embeddings", "/v1/"):
        assert "Please check it; /docs lists" in error(http.get(path), 404)["message"]
