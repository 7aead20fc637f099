"""Access: who calls, what they may see and change, who else may see it; and the audit table of what was done.

A prefix that a caller may not see does not exist for them: the condition is part of every query,
so that an absent and a hidden prefix take the same path to the same error.

An audit entry is written in the transaction of the change that it records.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from sqlalchemy import ColumnElement, Connection, delete, exists, or_, select, true, update

from foreword.errors import NotAllowed, UnknownKey, UnknownPrefix
from foreword.store.database import insert
from foreword.store.names import check_owner
from foreword.store.record import Record
from foreword.store.schema import api_key, audit, now, prefix, share

Role = Literal["admin", "owner", "reader"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class Caller:
    """On whose behalf a call is made.

    Attributes:
        owner: whose prefixes are theirs; None for administrators.
        role: `admin` may do everything, `owner` reads and writes their own, `reader` only reads.
        key: id of the API key they came with, if they did.
    """

    owner: str | None
    role: Role
    key: str | None = None

    def __str__(self) -> str:
        name = "administrator" if self.owner is None else f"{self.role} {self.owner}"
        return name if self.key is None else f"{name} (key {self.key})"


ADMINISTRATOR = Caller(owner=None, role="admin")


def visible(caller: Caller) -> ColumnElement[bool]:
    """Condition on a row of `prefix`: the caller may see it."""
    if caller.role == "admin":
        return true()
    shared = exists().where(
        share.c.grantee == caller.owner, share.c.owner == prefix.c.owner, share.c.name == prefix.c.name
    )
    return or_(prefix.c.owner == caller.owner, prefix.c.public == true(), shared)


def check_writes(caller: Caller, owner: str) -> None:
    """Refuse a caller who may not write below `owner`; looks at no prefix.

    Raises:
        NotAllowed: another owner, or a role that only reads.
    """
    if caller.role == "admin" or (caller.role == "owner" and caller.owner == owner):
        return
    raise NotAllowed(f"{caller} may not write below {owner}/; a key of that owner or of an administrator may")


def check_key(connection: Connection, caller: Caller) -> None:
    """Refuse a caller whose key went since they came, and hold it till this transaction ends.

    Call it in every transaction that adds something for an owner: forgetting an owner takes their keys
    first, so what is added under one is either there to be forgotten, or refused.

    Raises:
        UnknownKey: it was revoked, or its owner forgotten.
    """
    if caller.key is None:
        return
    query = select(api_key.c.revoked).where(api_key.c.id == caller.key).with_for_update(read=True)
    row = connection.execute(query).first()
    if row is None or row.revoked is not None:
        raise UnknownKey("this API key is no longer valid; nothing was changed")


def check_administrates(caller: Caller, what: str) -> None:
    """Refuse everybody but administrators. Raises NotAllowed."""
    if caller.role != "admin":
        raise NotAllowed(f"{caller} may not {what}; an administrator may")


def check_owns(caller: Caller, owner: str) -> None:
    """For work on a whole owner: other owners do not exist for those who are no administrators.

    Raises:
        BadName: no owner can be called so.
        UnknownPrefix: another owner.
    """
    check_owner(owner)
    if caller.role != "admin" and caller.owner != owner:
        raise UnknownPrefix(f"there is no owner {owner} that {caller} may read")


def check_scope(caller: Caller, owner: str | None, what: str) -> None:
    """For work on one owner, or, where `owner` is None, on the whole store. Raises as the two above."""
    if owner is None:
        check_administrates(caller, what)
    else:
        check_owns(caller, owner)


def lock(connection: Connection, caller: Caller, owner: str, name: str) -> None:
    """Hold one prefix until the transaction ends, for a caller who is about to change it.

    Raises:
        UnknownPrefix: absent, without a version, or hidden from the caller.
        NotAllowed: the caller sees it but may not write it.
    """
    query = select(prefix.c.latest).where(
        prefix.c.owner == owner, prefix.c.name == name, prefix.c.latest.is_not(None), visible(caller)
    )
    if connection.execute(query.with_for_update(of=prefix)).first() is None:
        raise unknown(f"{owner}/{name}", caller)
    check_writes(caller, owner)


def unknown(reference: object, caller: Caller) -> UnknownPrefix:
    """The error for what is absent or hidden."""
    return UnknownPrefix(
        f"there is no prefix {reference} that {caller} may read",
        advice="store.list() has those that are there",
        remedy="unknown prefix",
    )


def publish(connection: Connection, caller: Caller, owner: str, name: str, public: bool) -> None:
    """Let everybody read a prefix, or only its owner and those it is shared with."""
    lock(connection, caller, owner, name)
    connection.execute(update(prefix).filter_by(owner=owner, name=name).values(public=public))
    note(connection, caller, "publish" if public else "unpublish", owner, f"{owner}/{name}")


def grant(connection: Connection, caller: Caller, owner: str, name: str, grantee: str) -> None:
    """Let another owner read a prefix."""
    row = {"grantee": check_owner(grantee), "owner": owner, "name": name}
    lock(connection, caller, owner, name)
    connection.execute(insert(connection, share).values(row).on_conflict_do_nothing())
    note(connection, caller, "share", owner, f"{owner}/{name} with {grantee}")


def withdraw(connection: Connection, caller: Caller, owner: str, name: str, grantee: str) -> None:
    """Take back what `grant` gave; nothing happens when it was not given."""
    row = {"grantee": check_owner(grantee), "owner": owner, "name": name}
    lock(connection, caller, owner, name)
    connection.execute(delete(share).filter_by(**row))
    note(connection, caller, "unshare", owner, f"{owner}/{name} with {grantee}")


@dataclass(frozen=True)
class AuditEntry(Record):
    """One line of the audit table.

    Attributes:
        id: grows with every entry.
        at: time, UTC, ISO 8601.
        who: the caller, with the id of their key.
        action: put, label, delete, share, ...
        owner: whose prefix it was about.
        target: prefix, version or key.
    """

    id: int
    at: str
    who: str
    action: str
    owner: str | None
    target: str | None
    digest: str | None


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


def forgotten_since(connection: Connection, entry: int) -> tuple[str, ...]:
    """Owners that were forgotten after the entry with this id."""
    query = select(audit.c.owner).where(audit.c.action == "forget", audit.c.id > entry).distinct()
    return tuple(connection.execute(query).scalars())
