"""Routes of the operations, which need no key: whether the server lives and takes requests, what it measures,
and the page that shows its API.

Anybody may ask them at any rate, so none costs more than one query or one page a moment, however many ask.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy import select
from starlette.responses import Response

from foreword.errors import ForewordError
from foreword.serving.api.schemas import ERRORS, Health
from foreword.serving.api.state import ServerState, server_of
from foreword.serving.errors import Refused
from foreword.store.schema import setting

T = TypeVar("T")

READY_SECONDS = 1.0
"""How long the store's answer holds for everybody who asks whether the server is ready."""
STORE_SECONDS = 5.0
"""How long it may take; beyond, the server is not ready."""
_LATER = {"retry-after": "5"}

operations = APIRouter(tags=["operations"])


class Shared(Generic[T]):
    """What a slow call gives, for all who ask meanwhile and for some time afterwards.

    One call runs at a time, in one thread. Who is cut off waiting leaves it running for the others.
    """

    def __init__(self, read: Callable[[], T], seconds: float = 0.0) -> None:
        self._read, self._seconds = read, seconds
        self._running: asyncio.Future[T] | None = None
        self._ended = 0.0

    async def get(self) -> T:
        """What the call gives. Raises what it raises."""
        running = self._running
        if running is None or (running.done() and time.monotonic() >= self._ended + self._seconds):
            running = self._running = asyncio.ensure_future(asyncio.to_thread(self._read))
            running.add_done_callback(self._note)
        return await asyncio.shield(running)

    def _note(self, ended: asyncio.Future[T]) -> None:
        self._ended = time.monotonic()
        if not ended.cancelled():
            ended.exception()  # read here, so that asyncio does not log it where nobody waits any more


def share_readings(server: ServerState) -> dict[str, Shared[Any]]:
    """The calls that the routes below share, for one server."""

    def ask_store() -> None:
        server.store.database.rows(select(setting.c.name).limit(1))

    return {"store": Shared(ask_store, READY_SECONDS), "metrics": Shared(lambda: server.metrics.exposition())}


@operations.get("/healthz", response_model=Health, responses=ERRORS)
async def health(request: Request) -> Any:
    """The process lives and answers."""
    return Health(status="draining" if server_of(request).draining else "ok")


@operations.get("/readyz", response_model=Health, responses=ERRORS)
async def ready(request: Request) -> Any:
    """New requests are taken, the engine runs and the store answers; otherwise 503."""
    server = server_of(request)
    if server.draining:
        raise Refused(503, "the server is stopping; ask another one", headers=_LATER)
    if not server.engine.ready():
        message = "the engine is not running; if it does not come back, restart the server"
        raise Refused(503, message, headers=_LATER)
    try:
        async with asyncio.timeout(STORE_SECONDS):
            await request.app.state.shared["store"].get()
    except (ForewordError, TimeoutError) as error:
        raise Refused(503, "the store does not answer", headers=_LATER) from error
    return Health(status="ok")


@operations.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}}}, **ERRORS},
)
async def metrics(request: Request) -> Response:
    """Measurements for Prometheus."""
    return Response(await request.app.state.shared["metrics"].get(), media_type=CONTENT_TYPE_LATEST)


@operations.get("/docs", include_in_schema=False)
async def page() -> Response:
    """A page that shows the OpenAPI document, of this file and nothing from other hosts."""
    content, policy = _page()
    headers = {"content-security-policy": policy, "referrer-policy": "no-referrer"}
    return Response(content, headers=headers, media_type="text/html")


@cache
def _page() -> tuple[bytes, str]:
    """The page, and the policy under which a browser runs its own script and loads nothing else."""
    content = Path(__file__).with_name("docs.html").read_text("utf-8")
    rules = ["default-src 'none'", "connect-src 'self'", "base-uri 'none'", "form-action 'none'"]
    rules.append("frame-ancestors 'none'")
    for tag in ("script", "style"):
        (inner,) = re.findall(rf"<{tag}>(.*?)</{tag}>", content, flags=re.S)
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        rules.append(f"{tag}-src 'sha256-{digest}'")
    return content.encode(), "; ".join(rules)
