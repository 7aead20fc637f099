"""What who runs a server sees of it: health, measurements, request ids, logs, the OpenAPI document."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from foreword.errors import StoreUnavailable
from foreword.serving import logs
from foreword.serving.api import operations
from foreword.serving.api.app import make_app
from foreword.serving.metrics import Metrics
from foreword.serving.serve import add_readings
from support.gateways import Gateway, running, tiny_chat_base
from support.stand_ins import random_prefix


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    none = {"requests_per_minute": "none", "tokens_per_minute": "none", "jobs": "none"}
    settings: dict[str, Any] = {"limits": none, "default_max_tokens": 4, "waiting_rows": 3}
    with running(tmp_path_factory.mktemp("gateway"), tiny_chat_base(), **settings) as found:
        found.store.put("alice/one", random_prefix(found.base, 3))
        yield found


@pytest.fixture
def http(gateway: Gateway) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {gateway.key('alice')}"}
    with httpx.Client(base_url=gateway.url, headers=headers, timeout=60) as client:
        yield client


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def measured(gateway: Gateway) -> dict[str, float]:
    text = httpx.get(f"{gateway.url}/metrics").text
    rows = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in rows}


def test_health_needs_no_key_and_tells_nothing(gateway: Gateway) -> None:
    assert httpx.get(f"{gateway.url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{gateway.url}/readyz").json() == {"status": "ok"}
    gateway.server.draining = True
    try:
        assert httpx.get(f"{gateway.url}/healthz").json() == {"status": "draining"}
        assert httpx.get(f"{gateway.url}/readyz").status_code == 503
    finally:
        gateway.server.draining = False


def test_a_server_whose_engine_has_stopped_is_not_ready(gateway: Gateway) -> None:
    gateway.engine.stopped = True
    try:
        answer = httpx.get(f"{gateway.url}/readyz")
        assert answer.status_code == 503
        assert "the engine is not running" in answer.json()["error"]["message"]
        assert httpx.get(f"{gateway.url}/healthz").json() == {"status": "ok"}
    finally:
        gateway.engine.stopped = False
    assert httpx.get(f"{gateway.url}/readyz").status_code == 200


def test_who_asks_whether_it_is_ready_shares_one_query_of_a_single_row(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    rows = gateway.store.database.rows
    monkeypatch.setattr(gateway.store.database, "rows", lambda query: asked.append(str(query)) or rows(query))
    monkeypatch.setattr(gateway.store, "list", None)
    app = make_app(gateway.server)

    async def ask(client: httpx.AsyncClient) -> int:
        return (await client.get("/readyz")).status_code

    async def crowd() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            return await asyncio.gather(*(ask(client) for _ in range(50)))

    assert asyncio.run(crowd()) == [200] * 50
    assert len(asked) == 1
    assert "LIMIT" in asked[0]
    assert "FROM setting" in asked[0]


def test_a_store_that_does_not_answer_is_not_ready_and_is_asked_again(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: Any) -> None:
        raise StoreUnavailable("postgresql://me:secret@db did not answer")

    app = make_app(gateway.server)

    async def visit() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            with monkeypatch.context() as patched:
                patched.setattr(gateway.store.database, "rows", away)
                answers = await asyncio.gather(*(client.get("/readyz") for _ in range(5)))
            assert [answer.status_code for answer in answers] == [503] * 5
            assert "the store does not answer" in answers[0].text
            assert "secret" not in answers[0].text
            monkeypatch.setattr(operations, "READY_SECONDS", 0.0)
            app.state.shared = operations.share_readings(gateway.server)
            assert (await client.get("/readyz")).status_code == 200

    asyncio.run(visit())


def test_one_call_is_shared_and_whoever_leaves_does_not_end_it() -> None:
    async def visit() -> None:
        calls: list[int] = []

        def read() -> int:
            time.sleep(0.05)
            calls.append(1)
            return len(calls)

        shared = operations.Shared(read, seconds=60)
        leaving = asyncio.create_task(shared.get())
        await asyncio.sleep(0)
        leaving.cancel()
        assert await asyncio.gather(*(shared.get() for _ in range(9))) == [1] * 9
        assert await shared.get() == 1  # still fresh
        again = operations.Shared(read)
        assert [await again.get(), await again.get()] == [2, 3]

    asyncio.run(visit())


def test_many_scrapes_ask_the_database_for_its_jobs_once(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("foreword.serving.jobs.queue.counted", lambda _: asked.append(1) or {"queued": 1.0})
    metrics = Metrics()
    add_readings(dataclasses.replace(gateway.server, metrics=metrics), None)
    texts = {metrics.exposition() for _ in range(5)}
    assert b'foreword_jobs{state="queued"} 1.0' in texts.pop()
    assert len(asked) == 1


def test_what_strangers_cause_by_connecting_fills_no_log() -> None:
    seldom = logs.Seldom(seconds=3600)
    passed = [record(f"{text}") for text in ["no HTTP"] * 1000 if seldom.filter(record(text))]
    assert len(passed) == 1
    now = logs.Seldom(seconds=0)
    assert all(now.filter(record("no HTTP")) for _ in range(3))
    for number in range(5000):
        seldom.filter(record(f"text {number}"))
    assert len(seldom._until) <= 200


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("asyncio", logging.ERROR, "", 0, text, (), None)


def test_measurements_count_requests_tokens_and_loads(gateway: Gateway, http: httpx.Client) -> None:
    before = measured(gateway)
    body = {"model": "alice/one", "prompt": "hello", "max_tokens": 3, "temperature": 0}
    assert http.post("/v1/completions", json=body).status_code == 200
    assert http.post("/v1/completions", json={**body, "model": "alice/none"}).status_code == 404
    told = 'foreword_requests_total{route="/v1/completions",status="404"}'
    wait_until(lambda: measured(gateway).get(told, 0) > before.get(told, 0))
    after = measured(gateway)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown('foreword_requests_total{route="/v1/completions",status="200"}') == 1
    assert grown('foreword_requests_total{route="/v1/completions",status="404"}') == 1
    assert grown('foreword_tokens_total{kind="prompt"}') == len("hello\n")
    assert grown('foreword_tokens_total{kind="completion"}') == 3
    assert grown("foreword_prefix_load_seconds_count") == 1
    assert grown("foreword_first_token_seconds_count") == 1
    assert sum(grown(f'foreword_cache_reads{{tier="{tier}"}}') for tier in ("memory", "blobs")) == 1
    assert after["foreword_rows"] == 0
    names = "".join(after)
    assert "alice" not in names


def test_request_ids_come_back_and_are_made_where_they_are_no_ids(http: httpx.Client) -> None:
    assert http.get("/v1/models", headers={"x-request-id": "my-id.1"}).headers["x-request-id"] == "my-id.1"
    made = http.get("/v1/models", headers={"x-request-id": "no id; <b>"}).headers["x-request-id"]
    assert re.fullmatch(r"req-[0-9a-f]{20}", made)
    assert http.get("/nowhere").headers["x-request-id"]


def test_more_texts_than_can_wait_are_refused(gateway: Gateway, http: httpx.Client) -> None:
    body = {"model": "alice/one", "prompt": "hello", "n": 4}
    response = http.post("/v1/completions", json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")
    assert response.headers["retry-after"]
    assert http.post("/v1/completions", json={**body, "n": 3}).status_code == 200
    assert gateway.server.rows == 0


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logs.JsonLines())
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += self.format(record) + "\n"


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler = Lines()
    level = logs.LOGGER.level
    logs.LOGGER.addHandler(handler)
    logs.LOGGER.setLevel(logging.INFO)
    yield handler
    logs.LOGGER.removeHandler(handler)
    logs.LOGGER.setLevel(level)


def test_logs_have_no_prompt_no_answer_and_no_key(
    gateway: Gateway, http: httpx.Client, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"model": "alice/one", "prompt": "hello, my secret", "max_tokens": 12, "temperature": 0}
    answer = http.post("/v1/completions", json=body).json()["choices"][0]["text"]
    assert len(answer) > 5
    http.post("/v1/completions", json={**body, "max_tokens": "my secret"})

    def broken(*_: Any) -> None:
        raise ZeroDivisionError("while answering: my secret")

    monkeypatch.setattr(gateway.engine, "_next", broken)
    failed = http.post("/v1/completions", json=body)
    assert (failed.status_code, failed.json()["error"]["type"]) == (500, "server_error")
    assert "secret" not in failed.text
    wait_until(lambda: lines.text.count("\n") >= 3)  # the line is written after the answer
    rows = [json.loads(line) for line in lines.text.splitlines()]
    assert [row["status"] for row in rows] == [200, 400, 500]
    assert {"time", "level", "event", "request", "route", "seconds", "owner", "key"} <= set(rows[0])
    assert rows[2]["error"] == "ZeroDivisionError"
    assert any("broken" in place for place in rows[2]["at"])
    secret = http.headers["authorization"].split()[1]
    assert rows[0]["key"] == secret.split("_")[1]
    for word in ("my secret", secret, secret.split("_", 2)[2], answer):
        assert word not in lines.text


def test_a_fault_in_mid_stream_is_said_in_the_stream(
    gateway: Gateway, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute, calls = gateway.engine._next, []

    def breaks(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise ZeroDivisionError("my secret")
        return compute(*arguments)

    monkeypatch.setattr(gateway.engine, "_next", breaks)
    body = {"model": "alice/one", "prompt": "hello", "max_tokens": 9, "temperature": 0, "stream": True}
    response = http.post("/v1/completions", json=body)
    events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert len(events) == 3
    assert json.loads(events[-1])["error"]["type"] == "server_error"
    assert "secret" not in response.text
    assert gateway.engine.rows == 0


def test_curl_gets_an_answer_and_a_stream(gateway: Gateway) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl here")
    body = {"model": "alice/one", "messages": [{"role": "user", "content": "hello"}], "temperature": 0}
    command = ["curl", "--silent", "--no-buffer", "--fail-with-body", f"{gateway.url}/v1/chat/completions"]
    command += ["-H", f"Authorization: Bearer {gateway.key('alice')}", "-H", "Content-Type: application/json"]
    whole = subprocess.run([*command, "-d", json.dumps(body)], capture_output=True, text=True, check=True)
    text = json.loads(whole.stdout)["choices"][0]["message"]["content"]
    assert len(text) == 4
    streamed = subprocess.run(
        [*command, "-d", json.dumps({**body, "stream": True})], capture_output=True, text=True, check=True
    )
    events = [line.removeprefix("data: ") for line in streamed.stdout.splitlines() if line]
    assert events[-1] == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events[:-1]]
    assert "".join(delta.get("content", "") for delta in deltas) == text


def test_a_client_that_stops_reading_loses_its_texts(gateway: Gateway) -> None:
    wait_until(
        lambda: gateway.server.running == 0
    )  # the request of the test before is counted until it is logged
    configuration = dataclasses.replace(gateway.server.configuration, write_seconds=0.2)
    server = dataclasses.replace(gateway.server, configuration=configuration)
    app = make_app(server)
    body = json.dumps(
        {"model": "alice/one", "prompt": "hello", "max_tokens": 50, "stream": True, "n": 2, "temperature": 0}
    )
    headers = [(b"authorization", f"Bearer {gateway.key('alice')}".encode())]
    headers += [(b"content-type", b"application/json")]
    scope = {
        **{"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1"},
        **{"method": "POST", "path": "/v1/completions", "raw_path": b"/v1/completions", "root_path": ""},
        **{"scheme": "http", "query_string": b"", "headers": headers, "server": ("x", 80), "client": None},
    }
    given = [{"type": "http.request", "body": body.encode(), "more_body": False}]
    taken: list[Any] = []
    freed = gateway.engine.freed

    async def receive() -> Any:
        if given:
            return given.pop()
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        taken.append(message)
        if len(taken) > 3:
            await asyncio.Event().wait()

    async def visit() -> None:
        gateway.engine.pause = 0.02
        try:
            await asyncio.wait_for(app(scope, receive, send), 20)
        finally:
            gateway.engine.pause = 0.0

    asyncio.run(visit())
    assert len(taken) == 4
    assert gateway.engine.freed == freed + 2
    assert (gateway.engine.rows, server.rows, server.running) == (0, 0, 0)
