"""Clients that are slow, or go away: their rows are freed."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import httpx
import pytest
from starlette.requests import ClientDisconnect, Request

from foreword.serving.api.streaming import stream
from support.gateways import Gateway

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def slowly(gateway: Gateway) -> Iterator[None]:
    gateway.engine.pause = 0.05
    yield
    gateway.engine.pause = 0.0


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_the_row_of_a_client_that_goes_away_is_freed(
    gateway: Gateway, http: httpx.Client, slowly: None, stream: bool, path: str
) -> None:
    freed = gateway.engine.freed
    text = {"messages": HELLO} if path == CHAT else {"prompt": "hello"}
    body = json.dumps(
        {"model": "alice/one", "max_tokens": 200, "n": 2, "stream": stream, "temperature": 0, **text}
    )
    with socket.create_connection(("127.0.0.1", int(gateway.url.rsplit(":", 1)[1]))) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {http.headers['authorization']}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall((head + body).encode())
        if stream:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        wait_until(lambda: gateway.engine.rows == 2)
    wait_until(lambda: gateway.engine.rows == 0)
    assert gateway.engine.freed == freed + 2


def test_a_stream_that_is_dropped_before_its_first_event_is_closed_at_once() -> None:
    """Not when its objects are thrown away: they are held here."""
    closed: list[str] = []

    class Texts:
        async def deltas(self) -> AsyncGenerator[str, None]:
            try:
                yield "first"
                yield "second"
            finally:
                closed.append("deltas")

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(3600)
        raise AssertionError

    async def gone(message: Any) -> None:
        raise OSError("nobody takes it")

    async def run() -> None:
        scope = {"type": "http", "method": "POST", "headers": [], "asgi": {"spec_version": "2.4"}}
        texts: Any = Texts()
        answer = await stream(Request(scope, receive), texts, (), lambda delta: (), lambda: ())
        with pytest.raises(ClientDisconnect):
            await answer(scope, receive, gone)
        assert closed == ["deltas"]

    asyncio.run(run())


def test_a_body_that_does_not_come_is_given_up(
    gateway: Gateway, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = dataclasses.replace(gateway.server.configuration, body_seconds=0.5)
    monkeypatch.setattr(gateway.server, "configuration", impatient)
    with socket.create_connection(("127.0.0.1", int(gateway.url.rsplit(":", 1)[1]))) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: {http.headers['authorization']}\r\n"
        connection.sendall(
            (head + 'Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"a').encode()
        )
        connection.settimeout(20)
        assert connection.recv(100).startswith(b"HTTP/1.1 408")
