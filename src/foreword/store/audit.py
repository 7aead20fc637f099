"""Audit: who did what, when, to which digest; written in the transaction of what it tells about."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, select

from foreword.store.tables import audit, now

if TYPE_CHECKING:
    from foreword.store.access import Caller

FORGOTTEN = "(forgotten)"


@dataclass(frozen=True)
class AuditEntry:
    """One line of the audit table.

    Attributes:
        id: grows with every entry.
        at: time, UTC, ISO 8601.
        who: the caller, with the id of their key.
        action: put, label, delete, share, ...
        owner: whose prefix it was about.
        target: prefix, version or key.
        digest: of the prefix file, where there is one.
    """

    id: int
    at: str
    who: str
    action: str
    owner: str | None
    target: str | None
    digest: str | None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)


def note(
    connection: Connection,
    caller: Caller,
    action: str,
    owner: str | None,
    target: str | None,
    digest: str | None = None,
) -> int:
    """Add an entry to the transaction under way; its id."""
    added = connection.execute(
        audit.insert()
        .returning(audit.c.id)
        .values(at=now(), who=str(caller), action=action, owner=owner, target=target, digest=digest)
    )
    return int(added.scalar_one())


def entries(
    connection: Connection, owner: str | None, limit: int, before: int | None
) -> tuple[AuditEntry, ...]:
    """The newest entries, of one owner or all; `before` an id continues a page."""
    query = select(audit).order_by(audit.c.id.desc()).limit(limit)
    if owner is not None:
        query = query.where(audit.c.owner == owner)
    if before is not None:
        query = query.where(audit.c.id < before)
    return tuple(AuditEntry(**row) for row in connection.execute(query).mappings())


def strip(connection: Connection, owner: str) -> None:
    """Take the names of a forgotten owner's prefixes out of the entries; who, when and digest stay."""
    connection.execute(audit.update().where(audit.c.owner == owner).values(target=f"{owner}/{FORGOTTEN}"))


def forgotten_since(connection: Connection, entry: int) -> tuple[str, ...]:
    """Owners that were forgotten after the entry with this id."""
    query = select(audit.c.owner).where(audit.c.action == "forget", audit.c.id > entry).distinct()
    return tuple(connection.execute(query).scalars())
