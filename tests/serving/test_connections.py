"""How many connections may be open, and for how long one may be open without a request."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from foreword.serving.config import of
from foreword.serving.connections import Connections, network_of
from support.gateways import Gateway, running, tiny_chat_base


class Waiting:
    """What `Connections` knows of one."""

    def __init__(self, address: str = "") -> None:
        self.address, self.since, self.unsent, self.is_busy = address, 0.0, 0, False
        self.transport, self.aborted, self.buffer = self, False, 0

    def abort(self) -> None:
        self.aborted = True

    def get_write_buffer_size(self) -> int:
        return self.buffer


def admitted(connections: Connections, *addresses: str) -> list[Waiting]:
    new = [Waiting(address) for address in addresses]
    for each in new:
        connections.admit(each)  # type: ignore[arg-type]
    return new


def busy(connections: Connections, one: Waiting) -> None:
    one.is_busy = True
    connections.waiting.pop(one)  # type: ignore[call-overload]


def test_the_one_that_waited_longest_makes_room_and_a_request_never_does() -> None:
    async def visit() -> None:
        connections = Connections(of({"connections": 3}))
        first, second, third = admitted(connections, "", "", "")
        busy(connections, first)
        (fourth,) = admitted(connections, "")
        assert [each.aborted for each in (first, second, third, fourth)] == [False, True, False, False]
        busy(connections, third)
        busy(connections, fourth)
        assert not connections.admit(Waiting())  # type: ignore[arg-type]
        assert (len(connections), connections.dropped) == (3, 2)
        connections.forget(first)  # type: ignore[arg-type]
        connections.forget(first)  # type: ignore[arg-type]
        assert connections.admit(Waiting())  # type: ignore[arg-type]

    asyncio.run(visit())


def test_one_address_takes_no_place_of_another() -> None:
    async def visit() -> None:
        connections = Connections(of({"connections": 8, "connections_per_address": 2}))
        (other,) = admitted(connections, "b")
        crowd = admitted(connections, *["a"] * 6)
        assert [each.aborted for each in crowd] == [True] * 4 + [False] * 2
        assert not other.aborted
        here = admitted(connections, *[""] * 4)
        assert not any(each.aborted for each in here)

    asyncio.run(visit())


def test_those_of_one_line_are_counted_together_and_those_of_this_machine_not_at_all() -> None:
    assert network_of("192.0.2.7") == network_of("::ffff:192.0.2.7") == "192.0.2.7"
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:2") != network_of("2001:db8:0:1::1")
    assert network_of("fe80::1%eth0") == network_of("fe80::2")
    assert {network_of(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "")} == {""}


def test_half_of_the_descriptors_stay_for_the_store() -> None:
    code = """
import resource
from foreword.serving.connections import allowed_connections
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 300))
print(allowed_connections(100), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
print(allowed_connections(1000), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["100", "200", "150", "300"]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    settings = {"head_seconds": 0.3, "write_seconds": 0.5, "training": False}
    with running(tmp_path_factory.mktemp("hasty"), tiny_chat_base(), **settings) as found:
        yield found


def opened(gateway: Gateway, send: bytes) -> socket.socket:
    url = httpx.URL(gateway.url)
    client = socket.create_connection((url.host, url.port))
    client.settimeout(
        20
    )  # far beyond the limits here, so that one that stays open is told from a slow machine
    client.sendall(send)
    return client


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ended(client: socket.socket) -> bytes:
    """What came until the server closed."""
    parts = []
    try:
        while part := client.recv(1 << 16):
            parts.append(part)
    except ConnectionResetError:
        pass
    client.close()
    return b"".join(parts)


REQUEST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize("sent", [b"", b"G", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: "])
def test_a_connection_without_a_whole_head_is_closed(gateway: Gateway, sent: bytes) -> None:
    assert ended(opened(gateway, sent)) == b""


def test_one_byte_after_an_answer_gives_no_more_time(gateway: Gateway) -> None:
    client = opened(gateway, REQUEST + REQUEST + b"G")
    assert ended(client).count(b'{"status":"ok"}') == 2


def test_a_refused_body_that_goes_on_without_end_is_cut(gateway: Gateway) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4000000\r\n\r\n"
    assert ended(opened(gateway, head + b"x")).startswith(b"HTTP/1.1 401 ")


def test_an_answer_that_nobody_takes_is_given_up(gateway: Gateway) -> None:
    """The client has room for a part of it alone, and takes nothing."""
    url = httpx.URL(gateway.url)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(20)
    client.connect((url.host, url.port))
    client.sendall(REQUEST.replace(b"/healthz", b"/openapi.json") * 200)
    wait_until(lambda: len(gateway.connections) == 1)
    wait_until(lambda: len(gateway.connections) == 0)
    client.close()


def test_what_is_no_http_is_answered_in_the_form_of_all_errors(gateway: Gateway) -> None:
    for sent in (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", REQUEST[:-2] + b"X: " + b"x" * 70_000):
        head, _, body = ended(opened(gateway, sent)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert json.loads(body)["error"]["code"] == "invalid_request"
