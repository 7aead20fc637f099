"""The FastAPI app: routers behind the middleware, and errors in OpenAI's form."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from foreword import __version__
from foreword.errors import ForewordError
from foreword.serving.api import completions, files, fine_tuning, models, responses, usage
from foreword.serving.api.middleware import RequestMiddleware
from foreword.serving.api.operations import operations, share_readings
from foreword.serving.api.state import ServerState
from foreword.serving.errors import Refused, refused, response_of, unknown_url
from foreword.serving.validation_errors import refusal_of, unreadable_body

ROUTERS = (
    models.router,
    completions.router,
    responses.router,
    files.router,
    fine_tuning.router,
    models.prefix_router,
    usage.router,
)
"""Those that need a key; a new endpoint's router goes here."""

_BEARER = HTTPBearer(auto_error=False, description="An API key of the store: fw_...")


def make_app(server: ServerState) -> FastAPI:
    """The whole API of one server."""
    app = FastAPI(
        title="Foreword",
        version=__version__,
        description="The OpenAI API over one base model and any number of prefixes.",
        docs_url=None,  # FastAPI's own page loads its script from another host; ours is in `operations`
        redoc_url=None,
        redirect_slashes=False,  # the document has no such answer, and its address would be the Host header's
    )
    app.state.server = server
    app.state.shared = share_readings(server)
    for router in ROUTERS:
        app.include_router(router, dependencies=[Depends(_declared)])
    app.include_router(operations)
    _handle_errors(app)
    app.add_middleware(RequestMiddleware, server=server)
    app.add_middleware(HeadAsGet)
    if origins := server.configuration.allowed_origins:
        # No credentials: a page sends its key in a header, and there are no cookies to send along.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=("x-request-id", "retry-after"),
        )
    return app


class HeadAsGet:
    """Answer HEAD wherever there is GET; whatever serves the app leaves out the body (RFC 9110, 9.3.2)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


def _declared(key: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]) -> None:
    """Says in the OpenAPI document that a key is needed; the middleware has checked it already."""


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def on_refused(request: Request, error: Refused) -> Response:
        request.state.counted = error.counted
        return response_of(error)

    @app.exception_handler(ForewordError)
    async def on_named(request: Request, error: ForewordError) -> Response:
        answer = refused(error)
        if answer.status >= 500:
            request.state.fault = error  # for the log
        return response_of(answer)

    @app.exception_handler(RequestValidationError)
    async def on_validation(request: Request, error: RequestValidationError) -> Response:
        return response_of(refusal_of(error, request.headers))

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> Response:
        if (unreadable := unreadable_body(error.__cause__, request.headers)) is not None:
            return response_of(unreadable)
        if isinstance(error.__cause__, Refused):
            return response_of(error.__cause__)
        path = request.url.path
        if error.status_code == 404:
            return response_of(unknown_url(request.method, path))
        headers = dict(error.headers or {})
        if error.status_code == 405:  # the router names the methods of one route only
            routes = [route for router in (*ROUTERS, operations) for route in router.routes]
            here = [r for r in routes if isinstance(r, APIRoute) and r.path_regex.match(path)]
            headers = {"allow": ", ".join(sorted({method for r in here for method in r.methods or ()}))}
        message = f"{request.method} is not possible here" if error.status_code == 405 else str(error.detail)
        return response_of(Refused(error.status_code, message, headers=headers))
