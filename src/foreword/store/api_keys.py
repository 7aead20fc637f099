"""API keys: what a caller shows to say who they are. The database keeps hashes, never keys.

A key is 256 random bits, so its plain SHA-256 can't be turned back by guessing; a slow hash is for
passwords, which people choose.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field

from sqlalchemy import Connection, select

from foreword.errors import NotAllowed, UnknownKey, UsageError
from foreword.store import access
from foreword.store.access import ROLES, Caller, Role, check_administrates
from foreword.store.names import check_owner
from foreword.store.record import Record
from foreword.store.schema import api_key, now

_FORM = re.compile(r"fw_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_COLUMNS = [column for column in api_key.c if column.name != "secret"]
LONGEST_NOTE = 256


@dataclass(frozen=True)
class KeyRecord(Record):
    """What is known of a key; the key itself is not.

    Attributes:
        id: the part of the key that may be shown and logged.
        owner: on whose behalf it acts; None for administrators.
        created: UTC, ISO 8601.
        revoked: since when it is refused; None while it is valid.
    """

    id: str
    owner: str | None
    role: Role
    note: str | None
    created: str
    revoked: str | None


@dataclass(frozen=True)
class NewKey:
    """A key at the one moment when it is known.

    Attributes:
        secret: the whole key, to be handed to its user; never shown by repr.
        record: what the database keeps.
    """

    secret: str = field(repr=False)
    record: KeyRecord


def create(connection: Connection, caller: Caller, owner: str | None, role: Role, note: str | None) -> NewKey:
    """Make a key; an administrator's has no owner, every other has one."""
    check_administrates(caller, "make keys")
    if role not in ROLES:
        raise UsageError(f"role is {role!r}; expected {', '.join(ROLES)}")
    if (role == "admin") != (owner is None):
        raise UsageError("a key of role admin has no owner; a key of role owner or reader has one")
    if owner is not None:
        check_owner(owner)
    if note is not None and len(note) > LONGEST_NOTE:
        raise UsageError(f"the note has {len(note)} characters; expected at most {LONGEST_NOTE}")
    record = KeyRecord(secrets.token_hex(6), owner, role, note, created=now(), revoked=None)
    secret = f"fw_{record.id}_{secrets.token_urlsafe(32)}"
    connection.execute(api_key.insert().values(**vars(record), secret=_hash(secret)))
    access.note(connection, caller, "make key", owner, f"key {record.id} ({role})")
    return NewKey(secret, record)


def listed(connection: Connection, caller: Caller, owner: str | None) -> tuple[KeyRecord, ...]:
    """Keys of one owner or, for administrators, all; oldest first."""
    if caller.role != "admin" and (owner is None or owner != caller.owner):
        raise NotAllowed(f"{caller} may list the keys of {caller.owner} only; an administrator may list all")
    query = select(*_COLUMNS).order_by(api_key.c.created, api_key.c.id)
    if owner is not None:
        query = query.where(api_key.c.owner == owner)
    return tuple(KeyRecord(**row) for row in connection.execute(query).mappings())


def revoke(connection: Connection, caller: Caller, identifier: str) -> KeyRecord:
    """Refuse a key from now on; revoking it again changes nothing."""
    check_administrates(caller, "revoke keys")
    query = select(*_COLUMNS).where(api_key.c.id == identifier).with_for_update()
    row = connection.execute(query).mappings().first()
    if row is None:
        raise UnknownKey("no key has this id; `foreword store keys list` shows them")
    record = KeyRecord(**row)
    if record.revoked is not None:
        return record
    record = dataclasses.replace(record, revoked=now())
    connection.execute(api_key.update().where(api_key.c.id == identifier).values(revoked=record.revoked))
    access.note(connection, caller, "revoke key", record.owner, f"key {identifier}")
    return record


def caller_of(connection: Connection, secret: str) -> Caller:
    """Who comes with this key.

    Raises:
        UnknownKey: malformed, never made or revoked; the message does not say which, nor the key.
    """
    match = _FORM.fullmatch(secret)
    row = None
    if match:
        row = connection.execute(select(api_key).where(api_key.c.id == match[1])).first()
    if row is None or row.revoked is not None or not hmac.compare_digest(row.secret, _hash(secret)):
        raise UnknownKey("this API key is not valid; ask an administrator for one")
    return Caller(owner=row.owner, role=row.role, key=row.id)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
