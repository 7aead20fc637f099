"""Health: whether the server lives, whether it takes requests, and its measurements. No key is needed."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from foreword.errors import ForewordError
from foreword.serving.api.schemas import ERRORS, Health
from foreword.serving.api.state import server_of
from foreword.serving.errors import Refused

router = APIRouter(tags=["operations"])


@router.get("/healthz", response_model=Health, responses=ERRORS)
async def health(request: Request) -> Any:
    """The process lives and answers."""
    return Health(status="draining" if server_of(request).draining else "ok")


@router.get("/readyz", response_model=Health, responses=ERRORS)
async def ready(request: Request) -> Any:
    """New requests are taken, the engine runs and the store answers; otherwise 503."""
    server = server_of(request)
    if server.draining:
        raise Refused(503, "the server is stopping; ask another one", headers={"retry-after": "5"})
    if not server.engine.ready():
        raise Refused(
            503,
            "the engine is not running; if it does not come back, restart the server",
            headers={"retry-after": "5"},
        )
    try:
        await run_in_threadpool(server.store.list, limit=1)
    except ForewordError as error:
        raise Refused(503, "the store does not answer", headers={"retry-after": "5"}) from error
    return Health(status="ok")


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}}}, **ERRORS},
)
def metrics(request: Request) -> Response:
    """Measurements for Prometheus."""
    return Response(server_of(request).metrics.exposition(), media_type=CONTENT_TYPE_LATEST)
