"""What every route has: the server's state, and the identity of the caller, from the Authorization header."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from starlette.requests import Request

from foreword.errors import UnknownKey
from foreword.serving.api.pools import Pools
from foreword.serving.config import NO_LIMITS, Configuration, Limits
from foreword.serving.engine.protocol import Engine
from foreword.serving.errors import Refused
from foreword.serving.metrics import Metrics
from foreword.serving.rate_limits import Limiter
from foreword.serving.served_model import ServedModel
from foreword.store import PrefixStore
from foreword.store.access import Caller
from foreword.store.usage import Meter

MOST_KNOWN_KEYS = 10_000
"""Keys of which it is remembered that they were good; the longest unused go first."""


@dataclass
class ServerState:
    """One running server.

    Attributes:
        store: as local administrator; routes use the caller's view of it.
        usage: what owners have used, until it is written down.
        known_keys: SHA-256 of authorizations that were good when last checked, with whose they are.
        running: requests under way.
        delayed: of these, refusals that wait to be answered.
        pools: what its requests share.
    """

    configuration: Configuration
    store: PrefixStore
    served: ServedModel
    engine: Engine
    metrics: Metrics
    limiter: Limiter = field(default_factory=Limiter)
    usage: Meter = field(default_factory=Meter)
    known_keys: dict[bytes, str] = field(default_factory=dict)
    running: int = 0
    delayed: int = 0
    draining: bool = False
    pools: Pools = field(init=False)

    def __post_init__(self) -> None:
        self.pools = Pools(self.configuration)

    @property
    def rows(self) -> int:
        """Texts that are written or wait for it."""
        return self.pools.rows.held


@dataclass(frozen=True)
class RequestIdentity:
    """Whose request it is: the store as they see it, and their limits."""

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

    @property
    def account(self) -> str:
        """Whose share of the server it takes: the owner's, or the key's own where it has none.

        No owner's name has a space.
        """
        return self.caller.owner or f"key {self.caller.key}"

    def owner(self, what: str) -> str:
        """Whose `what` (files, jobs) the caller's are.

        Raises:
            Refused: 403, an administrator's key, which is nobody's.
        """
        if self.caller.owner is None:
            raise Refused(
                403, f"{what} belong to an owner, and an administrator's key has none; use an owner's key"
            )
        return self.caller.owner

    def writer(self, what: str) -> str:
        """As `owner`, for a caller who may also write.

        Raises:
            Refused: 403, as `owner`, or a key that only reads.
        """
        owner = self.owner(what)
        if self.caller.role == "reader":
            raise Refused(403, f"this key only reads; {what} need a key of role owner")
        return owner


def authenticate(
    configuration: Configuration, store: PrefixStore, headers: Mapping[str, str]
) -> RequestIdentity:
    """Whose request comes with these headers.

    Raises:
        Refused: 401, no key, one that was never made, or a revoked one.
    """
    if not configuration.keys:  # whoever reaches a loopback address is the person at this machine
        return RequestIdentity(store.as_caller(Caller(configuration.owner, "admin")), NO_LIMITS)
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    challenge = {"www-authenticate": "Bearer"}
    if scheme.lower() != "bearer" or not secret.strip():
        message = "there is no API key; send it as the header Authorization: Bearer fw_..."
        raise Refused(401, message, headers=challenge)
    try:
        view = store.as_key(secret.strip())
    except UnknownKey as error:
        raise Refused(401, str(error), headers=challenge) from error
    return RequestIdentity(view, configuration.key_limits.get(view.caller.key or "", configuration.limits))


async def identify(server: ServerState, headers: Mapping[str, str], address: str) -> RequestIdentity:
    """As `authenticate`, in the threads for keys. Each time anew: a key that was revoked is good no more."""
    configuration, known = server.configuration, server.known_keys
    if not configuration.keys:
        return authenticate(configuration, server.store, headers)
    # Not the key itself, which is not to stay in memory.
    digest = hashlib.sha256(headers.get("authorization", "").encode()).digest()
    account = known.get(digest)
    pool, who = (server.pools.keys, address) if account is None else (server.pools.known_keys, account)
    try:
        identity = await pool.run(who, lambda: authenticate(configuration, server.store, headers))
    except Refused:
        known.pop(digest, None)
        raise
    known.pop(digest, None)  # and comes to the end
    known[digest] = identity.account
    if len(known) > MOST_KNOWN_KEYS:
        del known[next(iter(known))]
    return identity


def server_of(request: Request) -> ServerState:
    """The server that got the request."""
    return cast(ServerState, request.app.state.server)


def identity_of(request: Request) -> RequestIdentity:
    """Whose request it is; the middleware has checked the key."""
    return cast(RequestIdentity, request.state.identity)
