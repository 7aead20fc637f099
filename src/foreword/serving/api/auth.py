"""Keys: from the Authorization header to a visitor."""

from __future__ import annotations

from collections.abc import Mapping

from foreword.errors import UnknownKey
from foreword.serving.api.state import RequestIdentity
from foreword.serving.config import NO_LIMITS, Configuration
from foreword.serving.errors import Refused
from foreword.store import PrefixStore
from foreword.store.access import Caller


def identity(configuration: Configuration, store: PrefixStore, headers: Mapping[str, str]) -> RequestIdentity:
    """Who comes with these headers.

    Raises:
        Refused: 401, no key, one that was never made, or a revoked one.
    """
    if not configuration.keys:  # whoever reaches a loopback address is the person at this machine
        return RequestIdentity(store.as_caller(Caller(configuration.owner, "admin")), NO_LIMITS)
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    challenge = {"www-authenticate": "Bearer"}
    if scheme.lower() != "bearer" or not secret.strip():
        raise Refused(
            401,
            "there is no API key; send it as the header Authorization: Bearer fw_...",
            headers=challenge,
        )
    try:
        view = store.as_key(secret.strip())
    except UnknownKey as error:
        raise Refused(401, str(error), headers=challenge) from error
    return RequestIdentity(view, configuration.key_limits.get(view.caller.key or "", configuration.limits))


def owner_of(identity: RequestIdentity, what: str) -> str:
    """Whose files and jobs a caller's are.

    Raises:
        Refused: 403, an administrator's key, which is nobody's.
    """
    owner = identity.caller.owner
    if owner is None:
        raise Refused(
            403, f"{what} belong to an owner, and an administrator's key has none; use an owner's key"
        )
    return owner


def writer_of(identity: RequestIdentity, what: str) -> str:
    """`owner_of`, for a caller who may also write.

    Raises:
        Refused: 403, as above, or a key that only reads.
    """
    owner = owner_of(identity, what)
    if identity.caller.role == "reader":
        raise Refused(403, f"this key only reads; {what} need a key of role owner")
    return owner
