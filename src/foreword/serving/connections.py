"""Connections of a server: how many may be open, and for how long one may be open without a request.

uvicorn ends a connection that is silent after an answer, and nothing else: one that sends half of a head, or
nothing at all, or does not take an answer's last bytes, stays for good. Here each has its time and is then
closed, and where there are too many, the one that has waited longest without a request makes room.
"""

from __future__ import annotations

import asyncio
import ipaddress
import resource
import time
from collections import defaultdict
from functools import partial
from http import HTTPStatus
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from foreword.serving.config import Configuration
from foreword.serving.errors import Refused, response_of

ACCEPTED_AT_ONCE = 32
"""Connections that asyncio accepts before any of them is counted: by no more than so many, beside those
allowed, descriptors are taken."""
SWEEP_SECONDS = 0.5
"""How often it is looked which have waited too long."""


class Connection(H11Protocol):
    """One connection, which the others know of.

    h11 is chosen whatever else is installed, because it bounds the size of a head (16 KB).
    """

    def __init__(self, others: Connections, **given: Any) -> None:
        super().__init__(**given)
        self._others = others
        self.since = 0.0  # when it last began to wait, or a byte of an answer went out
        self.unsent = 0
        self.address = ""

    @property
    def is_busy(self) -> bool:
        """Whether a request came whole, as far as its head, and is not answered yet."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for a request, or be refused."""
        super().connection_made(cast(asyncio.Transport, transport))
        self.address = network_of(self.client[0] if self.client else "")
        if not self._others.admit(self):
            text = "the server has too many connections; try again in a moment"
            self.refuse(Refused(503, text, code="overloaded", headers={"retry-after": "5"}))

    def connection_lost(self, exc: Exception | None) -> None:
        """Make room."""
        self._others.forget(self)
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """What has come so far; from a whole head on, the request has the time that the middleware gives."""
        super().handle_events()
        if self.is_busy:
            self._others.waiting.pop(self, None)

    def on_response_complete(self) -> None:
        """Wait again."""
        self._others.wait(self)
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP in the form of all errors."""
        text = "this is no HTTP/1.1 request, or its head is larger than 16 KB; send another"
        self.refuse(Refused(400, text, code="invalid_request"))

    def refuse(self, error: Refused) -> None:
        """Answer without a request, and close."""
        answer = response_of(error)
        answer.headers["connection"] = "close"
        lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}".encode()]
        lines += [name + b": " + value for name, value in answer.raw_headers]
        self.transport.write(b"\r\n".join([*lines, b"", bytes(answer.body)]))
        self.transport.close()


class Connections:
    """All connections of one server.

    Attributes:
        waiting: those without a request, the longest waiting first.
        dropped: how many were closed or refused for others' sake or their own slowness.
    """

    def __init__(self, configuration: Configuration) -> None:
        self.most = allowed_connections(configuration.connections)
        self.waiting: dict[Connection, None] = {}
        self.dropped = 0
        self._open: dict[Connection, None] = {}
        self._at: defaultdict[str, dict[Connection, None]] = defaultdict(dict)
        self._configuration = configuration
        self._next: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, new: Connection) -> bool:
        """Whether a new one may stay; another may have to go for it."""
        same = self._at.get(new.address, {})
        most_same = self._configuration.connections_per_address
        if new.address and most_same is not None and len(same) >= most_same:
            room = self._drop(next((each for each in same if each in self.waiting), None))
        elif len(self._open) >= self.most:
            room = self._drop(next(iter(self.waiting), None))
        else:
            room = True
        if not room:
            self.dropped += 1
            return False
        self._open[new] = self._at[new.address][new] = None
        self.wait(new)
        if self._next is None:
            self._next = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep_later)
        return True

    def wait(self, connection: Connection) -> None:
        """Note that one has no request from now on."""
        connection.since = time.monotonic()
        self.waiting.pop(connection, None)
        if connection in self._open:
            self.waiting[connection] = None

    def forget(self, gone: Connection) -> None:
        """Note that one is closed; once is enough."""
        self.waiting.pop(gone, None)
        if self._open.pop(gone, self) is None:
            same = self._at[gone.address]
            del same[gone]
            if not same:
                del self._at[gone.address]

    def sweep(self) -> None:
        """Close those that have waited too long."""
        now = time.monotonic()
        for each in list(self._open):
            unsent = each.transport.get_write_buffer_size()
            if unsent != each.unsent:
                each.unsent, each.since = unsent, now
            elif each.is_busy and not unsent:
                continue  # the body has the middleware's time, and the answer is not made yet
            elif now - each.since >= self._limit(unsent):
                self._drop(each)

    def _sweep_later(self) -> None:
        if not self._open:
            self._next = None
            return
        self.sweep()
        self._next = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep_later)

    def _limit(self, unsent: int) -> float:
        return self._configuration.write_seconds if unsent else self._configuration.head_seconds

    def _drop(self, connection: Connection | None) -> bool:
        if connection is None:
            return False
        self.dropped += 1
        self.forget(connection)
        connection.transport.abort()
        return True


def uvicorn_settings(app: Any, configuration: Configuration, connections: Connections) -> uvicorn.Config:
    """How uvicorn runs a server, but for its address and its end."""
    return uvicorn.Config(
        app,
        http=cast(Any, partial(Connection, connections)),
        # Not what happens to be installed: what answers is what was tested.
        ws="none",
        loop="asyncio",
        # asyncio's loop takes this for how many it accepts in one go, too; `_Runner` sets the queue's length.
        backlog=ACCEPTED_AT_ONCE,
        timeout_keep_alive=cast(int, configuration.head_seconds),
        log_config=None,
        access_log=False,
        server_header=False,
    )


def allowed_connections(wanted: int) -> int:
    """How many there may be: half of the descriptors that the process may have, at most.

    The other half is for the store's files and its database. The soft limit is raised first, where the hard
    one allows it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * wanted
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft // 2))


def network_of(host: str) -> str:
    """What one client is counted by: the address, of IPv6 the /64 that a single line has; empty for this
    machine's own, which may be a proxy with many clients."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return "" if address.is_loopback else str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
        address = address.ipv4_mapped
    return "" if address.is_loopback else str(address)
