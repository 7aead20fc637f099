"""Requests to the server, in this process: bodies, forms, query texts, headers and paths, with a key and without.

Every answer has to be one that the OpenAPI document names, in the form that it says, and none may be 5xx. A prefix
file that was taken has to be shown, listed, given back and answered with; an uploaded file has to be listed.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import random
import re
import tempfile
import urllib.parse
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

from foreword import PrefixStore
from foreword.errors import TemplateChanged
from foreword.serving.api.app import make_app
from foreword.serving.api.state import ServerState
from foreword.serving.config import of
from foreword.serving.engine.local import LocalEngine
from foreword.serving.metrics import Metrics
from foreword.serving.served_model import served_of
from fuzz import prefix_files, training_files
from fuzz.harness import Fault, Target, fault_of
from fuzz.mutations import changed, damaged, dumps
from support.gateways import tiny_chat_base
from support.stand_ins import random_prefix

BOUNDARY = "fuzz-boundary"
TEXT = {
    "model": "alice/one",
    "prompt": "hello",
    "max_tokens": 2,
    "temperature": 0.5,
    "stop": ["x"],
    "n": 2,
    "seed": 3,
}
CHAT = {
    "model": "tiny-llama",
    "messages": [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
    ],
    "max_completion_tokens": 2,
    "logprobs": True,
    "top_logprobs": 2,
    "stream": True,
    "stream_options": {"include_usage": True},
    "top_p": 0.9,
}
JOB = {
    "model": "tiny-llama",
    "training_file": "file-x",
    "suffix": "mine",
    "seed": 1,
    "hyperparameters": {
        "n_epochs": 1,
        "learning_rate": 0.1,
        "length": 4,
        "parameterization": "mlp+start",
        "width": 8,
    },
    "metadata": {"a": "b"},
    "template": {"style": "separator", "separator": " = "},
}
BODIES = {"/v1/completions": TEXT, "/v1/chat/completions": CHAT, "/v1/fine_tuning/jobs": JOB}
NAMES = (
    "alice/one",
    "alice%2Fone",
    "bob/one",
    "tiny-llama",
    "alice/one@1",
    "alice/one@9",
    "..%2F..%2Fetc",
    "%00",
    "%ff",
)
WORDS = (*NAMES, "é", "a" * 400, "", "@", "ftjob-0", "file-0", "alice/one@sha256:" + "a" * 64, "%ED%A0%80")
QUERIES = (
    "limit=0",
    "limit=1",
    "limit=9999999999999999999999",
    "limit=x",
    "after=x",
    "after=%00",
    "after=%ff",
    "order=desc",
)
QUERIES += (
    "purpose=fine-tune",
    "limit=1&limit=2",
    "x=1",
    "metadata%5Ba%5D=b",
    "limit=٣",
    "after=alice/one",
    "a" * 3000,
)
HEADERS = (
    "authorization",
    "content-type",
    "x-request-id",
    "content-length",
    "accept",
    "transfer-encoding",
    "range",
)
HEADER_TEXTS = (
    "",
    "x",
    "Bearer",
    "Bearer \xff",
    "application/json; charset=utf-16",
    "multipart/form-data",
    "-1",
    "\0",
    "*/*",
)


@dataclass
class Server:
    app: Any
    document: dict[str, Any]
    loop: asyncio.AbstractEventLoop
    keys: dict[str, str]
    paths: tuple[tuple[str, str], ...]


@functools.cache
def server() -> Server:
    """The real app, store and engine around a tiny base, made once."""
    base = tiny_chat_base()
    folder = Path(tempfile.mkdtemp(prefix="foreword-fuzz-"))
    limits = dict.fromkeys(("requests_per_minute", "tokens_per_minute", "jobs", "stored_bytes"), "none")
    configuration = of({"store": str(folder / "store"), "training": False, "limits": limits})
    store = PrefixStore(configuration.store)
    for owner in ("alice", "bob"):
        store.put(f"{owner}/one", random_prefix(base, 5))
    keys = {owner: store.create_key(owner, "owner").secret for owner in ("alice", "bob")}
    keys["reader"] = store.create_key("alice", "reader").secret
    keys["admin"] = store.create_key(None, "admin").secret
    state = ServerState(configuration, store, served_of(base), LocalEngine(base), Metrics())
    state.limiter.refusal_wait = lambda who: 0.0  # type: ignore[method-assign]  # many keys here are wrong
    app = make_app(state)
    document = app.openapi()
    paths = tuple((method.upper(), path) for path, of_path in document["paths"].items() for method in of_path)
    return Server(app, document, asyncio.new_event_loop(), keys, paths)


# -- making ----------------------------------------------------------------------------------------


def make(rng: random.Random) -> bytes:
    """A request as JSON: method, path, query, headers, and the body in base 85."""
    kind = rng.random()
    key = rng.choice(("alice", "alice", "alice", "alice", "bob", "reader", "admin", "none"))
    if kind < 0.5:
        path = rng.choice(sorted(BODIES))
        body: Any = BODIES[path]
        body = changed(body, rng, rng.choice((1, 1, 2, 3))) if rng.random() < 0.95 else body
        content = dumps(body, rng).encode("utf-8", "surrogatepass")
        content = damaged(content, rng) if rng.random() < 0.1 else content
        made = {"method": "POST", "path": path, "query": "", "headers": {"content-type": "application/json"}}
    elif kind < 0.7:
        content = _form(
            "name",
            rng.choice(("new", "alice/new", "alice/new", rng.choice(WORDS))),
            prefix_files.make(rng),
            rng,
        )
        made = _upload("/v1/prefixes")
    elif kind < 0.82:
        content = _form(
            "purpose", rng.choice(("fine-tune", "fine-tune", "x")), training_files.make(rng)[1:], rng
        )
        made = _upload("/v1/files")
    else:
        method, path = rng.choice(server().paths)
        path = re.sub(r"\{[^}]*\}", lambda _: rng.choice(WORDS), path)
        content = (
            b""
            if method != "POST" or rng.random() < 0.5
            else rng.choice((b"{}", b"[]", b"null", b"\xff", b"{"))
        )
        method = (
            method
            if rng.random() < 0.9
            else rng.choice(("PUT", "PATCH", "HEAD", "OPTIONS", "TRACE", "X", "POST"))
        )
        query = "&".join(rng.choice(QUERIES) for _ in range(rng.choice((0, 0, 1, 2))))
        made = {"method": method, "path": path, "query": query, "headers": {}}
    if rng.random() < 0.05:
        made["headers"][rng.choice(HEADERS)] = rng.choice(HEADER_TEXTS)
    return json.dumps({**made, "key": key, "body": base64.b85encode(content).decode()}).encode()


def _upload(path: str) -> dict[str, Any]:
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    return {"method": "POST", "path": path, "query": "", "headers": {"content-type": kind}}


def _form(field: str, text: str, file: bytes, rng: random.Random | None = None) -> bytes:
    parts = [
        f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{field}"\r\n\r\n{text}\r\n'.encode(),
        f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="file"; filename="f.jsonl"\r\n\r\n'.encode()
        + file
        + b"\r\n",
    ]
    if rng is not None and rng.random() < 0.06:
        parts.insert(rng.randrange(3), rng.choice(parts))
    if rng is not None and rng.random() < 0.04:
        del parts[rng.randrange(len(parts))]
    content = b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()
    return damaged(content, rng) if rng is not None and rng.random() < 0.04 else content


# -- sending ---------------------------------------------------------------------------------------


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


async def _send(method: str, path: str, query: str, headers: dict[str, str], body: bytes) -> Answer:
    """One request through the app, as a web server would hand it over."""
    raw = path.encode("utf-8", "surrogatepass")
    scope = {
        **{"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1"},
        **{"method": method, "path": urllib.parse.unquote(path), "raw_path": raw, "root_path": ""},
        **{
            "scheme": "http",
            "query_string": query.encode(),
            "server": ("127.0.0.1", 80),
            "client": ("127.0.0.1", 1),
        },
        "headers": [(name.encode("latin-1"), text.encode("latin-1")) for name, text in headers.items()],
    }
    given = [{"type": "http.request", "body": body, "more_body": False}]
    found = Answer(0, {}, b"")
    done = asyncio.Event()

    async def receive() -> Any:
        if given:
            return given.pop()
        await done.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            found.status = message["status"]
            found.headers = {
                name.decode("latin-1").lower(): text.decode("latin-1") for name, text in message["headers"]
            }
        elif message["type"] == "http.response.body":
            found.body += message.get("body", b"")

    await server().app(scope, receive, send)
    done.set()
    return found


def _ask(method: str, path: str, key: str, body: bytes = b"", *, query: str = "", **headers: str) -> Answer:
    sent = {"host": "127.0.0.1", **headers}
    if key in server().keys:
        sent.setdefault("authorization", f"Bearer {server().keys[key]}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TemplateChanged)
        answer = server().loop.run_until_complete(_send(method, path, query, sent, body))
    _check(answer, method, urllib.parse.unquote(path))
    return answer


# -- judging ---------------------------------------------------------------------------------------


def _check(answer: Answer, method: str, path: str) -> None:
    """Raise Fault for an answer that the document does not describe, or that is a fault of the server's."""
    shown = f"{method} {path[:60]} gives {answer.status}"
    if not 200 <= answer.status < 500:
        raise Fault(f"{shown}: {answer.body[:300]!r}")
    if answer.status >= 400:
        _check_error(answer, shown, bodiless=method == "HEAD")
        return
    described = _described(method, path)
    if described is None:
        if method not in ("HEAD", "OPTIONS"):
            raise Fault(f"{shown}, and the document has no such operation")
        return
    kinds = described.get(str(answer.status), {}).get("content")
    if kinds is None:
        raise Fault(f"{shown}, which the document does not have: {sorted(described)}")
    kind = answer.headers.get("content-type", "").partition(";")[0]
    if kind == "text/event-stream":
        for event in re.findall(rb"^data: (\{.*\})$", answer.body, re.MULTILINE):
            if b'"error"' in event[:10]:
                _check_error(
                    Answer(400, {"content-type": "application/json"}, event), f"{shown} with an event"
                )
    elif kind == "application/json" and "application/json" in kinds:
        for error in _validator(json.dumps(kinds["application/json"]["schema"])).iter_errors(
            json.loads(answer.body)
        ):
            raise Fault(f"{shown} in another form than the document's: {error.message[:200]}")


def _check_error(answer: Answer, shown: str, *, bodiless: bool = False) -> None:
    if bodiless and not answer.body:
        return
    try:
        found = json.loads(answer.body)["error"]
        message, keys = found["message"], set(found)
    except (ValueError, KeyError, TypeError) as error:
        raise Fault(f"{shown} without an error's form: {answer.body[:200]!r}") from error
    if keys != {"message", "type", "param", "code"} or not isinstance(message, str):
        raise Fault(f"{shown} without an error's form: {answer.body[:200]!r}")
    if fault := fault_of(f"{shown} ({found['code']})", message):
        raise Fault(fault)
    if "/tmp/" in message or str(Path.home()) in message:
        raise Fault(f"{shown} tells a path of the server: {message[:200]}")


@functools.cache
def _patterns() -> tuple[tuple[re.Pattern[str], dict[str, Any]], ...]:
    made = []
    for path, operations in server().document["paths"].items():
        form = re.sub(r"\\\{[^}]*\\\}", ".+" if "model" in path else "[^/]+", re.escape(path))
        made.append((re.compile(form, re.DOTALL), operations))
    return tuple(sorted(made, key=lambda pair: pair[0].pattern.count(".+")))


def _described(method: str, path: str) -> dict[str, Any] | None:
    for form, operations in _patterns():  # clients put a slash behind a list's path, too
        if (form.fullmatch(path) or form.fullmatch(path.rstrip("/"))) and method.lower() in operations:
            responses: dict[str, Any] = operations[method.lower()]["responses"]
            return responses
    return None


@functools.cache
def _validator(schema: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(
        {**json.loads(schema), "components": server().document["components"]}
    )


def run(content: bytes) -> str:
    given = json.loads(content)
    body = base64.b85decode(given["body"])
    answer = _ask(
        given["method"], given["path"], given["key"], body, query=given["query"], **given["headers"]
    )
    made = (given["method"], given["path"], answer.status)
    if made == ("POST", "/v1/prefixes", 200):
        _check_taken(json.loads(answer.body), given["key"])
        return "200 (prefix)"
    elif made == ("POST", "/v1/files", 200):
        _ask("GET", "/v1/files", given["key"])
        identifier = json.loads(answer.body)["id"]
        job = {"model": "tiny-llama", "training_file": identifier}
        started = _ask(
            "POST",
            "/v1/fine_tuning/jobs",
            given["key"],
            json.dumps(job).encode(),
            **{"content-type": "application/json"},
        )
        if started.status == 200:
            _ask("POST", f"/v1/fine_tuning/jobs/{json.loads(started.body)['id']}/cancel", given["key"])
        _ask("DELETE", f"/v1/files/{identifier}", given["key"])
    return f"{answer.status}"


def _check_taken(described: dict[str, Any], key: str) -> None:
    """A prefix file that was taken is shown, listed, given back, and answers; and goes again."""
    name, _, _ = described["id"].partition("@")
    for path in (
        f"/v1/prefixes/{described['id']}",
        f"/v1/prefixes/{name}/content",
        f"/v1/models/{name}",
        "/v1/models",
    ):
        if (answer := _ask("GET", path, key)).status != 200:
            raise Fault(f"a prefix was taken, and GET {path} gives {answer.status}: {answer.body[:300]!r}")
    body = json.dumps({"model": name, "prompt": "hello", "max_tokens": 2}).encode()
    answer = _ask("POST", "/v1/completions", key, body, **{"content-type": "application/json"})
    # Numbers that are finite, and whose products with the model's are not, show when they are used.
    if answer.status != 200 and b'"not_finite"' not in answer.body:
        raise Fault(f"a prefix was taken, and answers {answer.status}: {answer.body[:300]!r}")
    _ask("DELETE", f"/v1/prefixes/{name}", key)


TARGET = Target("requests", make, run, share=0.01)
