"""App: the routes behind the gate."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, FastAPI
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from foreword import __version__
from foreword.serving import errors
from foreword.serving.api import chat, completions, files, fine_tuning, health, models, prefixes
from foreword.serving.api.middleware import RequestMiddleware
from foreword.serving.api.state import ServerState

ROUTERS = (models.router, completions.router, chat.router, files.router, fine_tuning.router, prefixes.router)
"""Those that need a key."""

_BEARER = HTTPBearer(auto_error=False, description="An API key of the store: fw_...")


def _declared(key: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]) -> None:
    """Says in the OpenAPI document that a key is needed; the gate has asked for it already."""


def make_app(server: ServerState) -> FastAPI:
    """The whole API of one server."""
    app = FastAPI(
        title="Foreword",
        version=__version__,
        description="The OpenAI API over one base model and any number of prefixes.",
        redoc_url=None,
    )
    app.state.server = server
    for router in ROUTERS:
        app.include_router(router, dependencies=[Depends(_declared)])
    app.include_router(health.router)
    routes = [route for router in (*ROUTERS, health.router) for route in router.routes]
    errors.install(app, [route for route in routes if isinstance(route, APIRoute)])
    app.add_middleware(RequestMiddleware, server=server)
    return app
