"""Middleware that every request passes before its route, and every answer after it.

Web pages of other sites, request id, drain, API key, limits, size and pace of the body, pace of the client
who reads, one line in the log, and the answer to a fault of ours. Plain ASGI: a streamed answer passes
untouched.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foreword.errors import ForewordError
from foreword.serving import logs
from foreword.serving.api.browsers import check_site
from foreword.serving.api.pools import SMALL_BODY
from foreword.serving.api.state import RequestIdentity, ServerState, identify
from foreword.serving.api.streaming import ClientGone
from foreword.serving.connections import network_of
from foreword.serving.errors import Refused, refused, response_of

OPEN = ("/healthz", "/readyz", "/metrics", "/docs", "/openapi.json")
"""Paths that need no key and are answered while the server drains."""
UPLOADS = ("/v1/files", "/v1/prefixes")
SLOWEST_BYTES_PER_SECOND = 64_000
"""An upload may be as slow as this, beyond the seconds that every body has."""
BYTES_PER_TOKEN = 4
"""Of a request that was read and refused: a rough number of tokens, to count it."""
CLIENT_GONE = 499
"""What logs and metrics say of a request whose client went away; nobody gets to read it."""
POLICY_VIOLATION = 1008
"""Of a WebSocket that is closed (RFC 6455); before it is open, the answer is 403."""
_LONGEST_METHOD = 16
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class NotTaken(Exception):
    """The client does not read its answer. (A bare TimeoutError can be a disk's, too.)"""


class RequestMiddleware:
    """ASGI middleware around the whole app."""

    def __init__(self, app: ASGIApp, server: ServerState) -> None:
        self._app = app
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through."""
        if scope["type"] == "websocket" and not self._may_connect(scope):
            await send({"type": "websocket.close", "code": POLICY_VIOLATION})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = _RequestContext(self._server, scope, receive, send)
        self._count(+1, context)
        try:
            await self._handle(context)
        finally:
            await context.leave()
            self._count(-1, context)
            context.log()

    def _may_connect(self, scope: Scope) -> bool:
        try:
            check_site(self._server.configuration, Headers(scope=scope))
        except Refused:
            return False
        return True

    def _count(self, change: int, context: _RequestContext) -> None:
        if not context.is_open:
            self._server.running += change
            self._server.metrics.running.set(self._server.running)

    async def _handle(self, context: _RequestContext) -> None:
        try:
            await context.enter()
            await self._app(context.scope, context.receive, context.send)
        except ClientGone:
            context.status = context.status or CLIENT_GONE
        except Refused as error:
            await context.answer(error)
        except ForewordError as error:
            context.fault = error
            await context.answer(refused(error))
        except NotTaken as error:
            context.fault = error
            context.status = CLIENT_GONE
        except Exception as error:
            context.fault = error
            await context.answer(Refused(500, "the server failed to answer; its log says more", code="fault"))


class _RequestContext:
    """One request on its way."""

    def __init__(self, server: ServerState, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.status = 0
        self.fault: BaseException | None = None
        self.is_open = scope["path"] in OPEN
        self._server = server
        self._receive = receive
        self._send = send
        self._headers = Headers(scope=scope)
        given = self._headers.get("x-request-id", "")
        self._id = given if _REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(10)}"
        self._state: dict[str, Any] = scope.setdefault("state", {})
        self._state["request_id"] = self._id
        self._start_time = time.perf_counter()
        self._body_time = self._start_time
        self._received = 0
        self._body_complete = False
        self._held = contextlib.AsyncExitStack()
        self._is_upload = scope["method"] == "POST" and scope["path"] in UPLOADS
        configuration = server.configuration
        self._limit = configuration.upload_bytes if self._is_upload else configuration.body_bytes

    async def enter(self) -> None:
        """Ask for the key, and whether there is room. Raises Refused: 403, 503 (draining), 401, 429, 413."""
        check_site(self._server.configuration, self._headers)
        if self.is_open:
            return
        if self._server.draining:
            raise Refused(
                503,
                "the server is stopping and takes no new requests; try again in a moment",
                headers={"retry-after": "5", "connection": "close"},
            )
        client = self.scope.get("client")
        address = network_of(client[0]) if client else ""
        identity = self._state["identity"] = await identify(self._server, self._headers, address)
        self._server.limiter.admit(identity.name, identity.limits)
        declared = self._headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > self._limit:
            raise Refused(413, self._too_large())
        await self._hold_body(identity, declared)

    async def _hold_body(self, identity: RequestIdentity, declared: str) -> None:
        """Wait until there is room for the body, before any of it is read. Raises Refused: 429."""
        size = int(declared) if declared.isdigit() else 0
        if "transfer-encoding" in self._headers:  # which does not say how much will come
            size = self._limit
        if size > SMALL_BODY:
            pools = self._server.pools
            bodies = pools.spooled if self._is_upload else pools.bodies
            await self._held.enter_async_context(bodies.hold(identity.account, size))
            self._body_time = time.perf_counter()
            self._server.limiter.check_tokens(identity.name, identity.limits)  # it may have waited long

    async def leave(self) -> None:
        """Give back what the request held, and count what was read and refused."""
        await self._held.aclose()
        identity = self._state.get("identity")
        counted = self.status == CLIENT_GONE or self._state.get("counted", False)
        if identity is not None and 400 <= self.status < 500 and not counted:
            tokens = self._received // BYTES_PER_TOKEN
            self._server.limiter.charge_refused(identity.name, identity.limits, tokens)

    async def _wait_refused(self) -> None:
        """Let a refusal wait its turn, where its key, or whoever has none, was refused very often already.

        Nothing is held meanwhile but the connection, and a quarter of all connections at most.
        """
        await self._held.aclose()
        server, identity = self._server, self._state.get("identity")
        seconds = server.limiter.refusal_wait("" if identity is None else identity.name)
        if server.delayed >= server.configuration.connections // 4 or server.draining:
            return
        server.delayed += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            server.delayed -= 1

    async def receive(self) -> Message:
        """The next part of the request's body, which comes in time and does not grow without end."""
        if self._body_complete:
            return await self._receive()
        allowed = self._server.configuration.body_seconds + self._received / SLOWEST_BYTES_PER_SECOND
        left = allowed - (time.perf_counter() - self._body_time)
        try:
            message = await asyncio.wait_for(self._receive(), max(left, 0))
        except TimeoutError as error:
            raise HTTPException(
                408, f"the request's body did not come within {allowed:.0f} s; send it again"
            ) from error
        self._received += len(message.get("body", b""))
        if self._received > self._limit:
            raise HTTPException(413, self._too_large())
        self._body_complete = not message.get("more_body", False)
        if self._body_complete and self._received <= SMALL_BODY:
            await self._held.aclose()  # a body that did not say its size had room for the largest
        elif self._body_complete:
            self._check_again()
        return message

    def _check_again(self) -> None:
        """Do not read a large body for a key whose others, sent at the same time, have cost too much."""
        identity = self._state["identity"]
        try:
            self._server.limiter.check_tokens(identity.name, identity.limits)
        except Refused as error:
            raise HTTPException(429) from error

    async def send(self, message: Message) -> None:
        """A part of the answer; a client who does not take it loses its rows."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.status in (401, 429):
                await self._wait_refused()
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._id
            # An uploaded file that is read back is never taken for a page.
            headers["x-content-type-options"] = "nosniff"
        try:
            await asyncio.wait_for(self._send(message), self._server.configuration.write_seconds)
        except TimeoutError as error:
            raise NotTaken(f"no piece of the answer was taken within its time: {error}") from error

    async def answer(self, error: Refused) -> None:
        """Answer with an error, if nothing was answered yet."""
        if self.status == 0:
            self._server.metrics.refused.labels(error.code or "").inc()
            await response_of(error)(self.scope, self.receive, self.send)

    def log(self) -> None:
        """One line in the log, and the counters."""
        seconds = time.perf_counter() - self._start_time
        route = getattr(self.scope.get("route"), "path", "unmatched")
        fault = self.fault or self._state.get("fault")
        metrics = self._server.metrics
        metrics.requests.labels(route, str(self.status)).inc()
        metrics.request_seconds.labels(route).observe(seconds)
        identity = self._state.get("identity")
        fields = {
            "request": self._id,
            "method": self.scope["method"][:_LONGEST_METHOD],
            "route": route,
            "status": self.status,
            "seconds": round(seconds, 4),
            "owner": identity and identity.caller.owner,
            "key": identity and identity.caller.key,
        }
        if fault is not None:
            logs.failure("request failed", fault, **fields)
        elif not self.is_open:
            logs.event("request", **fields)

    def _too_large(self) -> str:
        return f"the request is larger than {self._limit} bytes; send less at once"
