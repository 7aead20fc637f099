"""Clients that are slow, or go away: their rows are freed."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from gateways import Gateway, running, tiny_chat_base
from refusals import state

from stand_ins import random_prefix

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    settings: dict[str, Any] = {"body_bytes": 1 << 20, "upload_bytes": 2 << 20, "body_seconds": 0.5}
    settings["limits"] = {"requests_per_minute": "none"}
    with running(tmp_path_factory.mktemp("gateway"), tiny_chat_base(), **settings) as found:
        found.store.put("alice/one", random_prefix(found.base, 5))
        found.store.put("bob/one", random_prefix(found.base, 5, seed=1))
        yield found


@pytest.fixture(scope="module")
def http(gateway: Gateway) -> httpx.Client:
    headers = {"Authorization": f"Bearer {gateway.key('alice')}"}
    return httpx.Client(base_url=gateway.url, headers=headers, timeout=60)


@pytest.fixture(autouse=True)
def nothing_changes(gateway: Gateway) -> Iterator[None]:
    before = state(gateway)
    yield
    assert state(gateway) == before


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


def test_a_body_that_does_not_come_is_given_up(gateway: Gateway, http: httpx.Client) -> None:
    with socket.create_connection(("127.0.0.1", int(gateway.url.rsplit(":", 1)[1]))) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: {http.headers['authorization']}\r\n"
        connection.sendall(
            (head + 'Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"a').encode()
        )
        connection.settimeout(20)
        assert connection.recv(100).startswith(b"HTTP/1.1 408")
