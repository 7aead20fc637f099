"""Server: what all routes share, and whose request a request is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from starlette.requests import Request

from foreword.serving.config import Configuration, Limits
from foreword.serving.engine.protocol import Engine
from foreword.serving.metrics import Metrics
from foreword.serving.rate_limits import Limiter
from foreword.serving.served_model import ServedModel
from foreword.store import PrefixStore
from foreword.store.access import Caller


@dataclass
class ServerState:
    """One running gateway.

    Attributes:
        store: as local administrator; routes use the caller's view of it.
        running: requests under way.
        rows: texts that are written or wait for it.
        draining: no new requests are taken.
    """

    configuration: Configuration
    store: PrefixStore
    served: ServedModel
    engine: Engine
    metrics: Metrics
    limiter: Limiter = field(default_factory=Limiter)
    running: int = 0
    rows: int = 0
    draining: bool = False


@dataclass(frozen=True)
class RequestIdentity:
    """Whose request it is.

    Attributes:
        view: the store as they see it.
        limits: theirs.
    """

    view: PrefixStore
    limits: Limits

    @property
    def caller(self) -> Caller:
        """On whose behalf."""
        return self.view.caller

    @property
    def name(self) -> str:
        """Whose minute is counted: the key's, or everybody's where there are no keys."""
        return self.caller.key or str(self.caller)


def server_of(request: Request) -> ServerState:
    """The server that got the request."""
    return cast(ServerState, request.app.state.server)


def visitor_of(request: Request) -> RequestIdentity:
    """Whose request it is; the gate has asked for the key."""
    return cast(RequestIdentity, request.state.identity)
