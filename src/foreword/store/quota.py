"""Quota: the bytes that an owner has in the store, and the limit that a server sets them.

A file counts once for each owner who names it in a version, or who put it and left it to garbage collection:
so it counts from before its upload until it is off the disk. Uploaded files of examples count with their
size, jobs with a share for their rows, ended ones too.

`reserve` and `check` hold the owner until the transaction ends, so that two writers can't both find the last
free bytes. Whether the caller may write there is to be asked before (`access.check_writes`): what an owner
stores is told to nobody else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Subquery,
    exists,
    func,
    literal,
    not_,
    or_,
    select,
    text,
    union,
    union_all,
)

from foreword.errors import StorageLimitExceeded
from foreword.store.schema import FILE_USERS, blob, blob_owner, job, upload

JOB_BYTES = 16 << 10
"""What a job's rows count as: its settings, and some fifty events of about 200 bytes each."""
_OWNER_LOCK = 0x666F7265 + 2
"""Class of the PostgreSQL advisory locks that hold an owner."""


def is_named(digest: ColumnElement[str]) -> ColumnElement[bool]:
    """Condition: something in the database needs the file with that digest."""
    return or_(*(exists().where(table.c.digest == digest) for table in FILE_USERS))


def stored(owner: str | None = None) -> Select[Any]:
    """Rows of `owner` and `bytes` stored, of one owner or of all."""
    files = _files(owner)
    parts = [
        select(files.c.owner, blob.c.size).join(blob, blob.c.digest == files.c.digest),
        select(upload.c.owner, upload.c.size),
        select(job.c.owner, literal(JOB_BYTES).label("size")),
    ]
    if owner is not None:
        parts[1] = parts[1].where(upload.c.owner == owner)
        parts[2] = parts[2].where(job.c.owner == owner)
    sizes = union_all(*parts).subquery()
    return select(sizes.c.owner, func.sum(sizes.c.size).label("bytes")).group_by(sizes.c.owner)


def stored_bytes(connection: Connection, owner: str) -> int:
    """Bytes that an owner has in the store."""
    return sum(int(row.bytes) for row in connection.execute(stored(owner)))


def hold(connection: Connection, owner: str) -> None:
    """Let nobody else check or change what an owner may store until this transaction ends."""
    if connection.dialect.name == "postgresql":  # SQLite has one writer anyway
        lock = text("SELECT pg_advisory_xact_lock(:kind, hashtext(:owner))")
        connection.execute(lock, {"kind": _OWNER_LOCK, "owner": owner})


def check(connection: Connection, owner: str, more: int, limit: int | None) -> None:
    """Refuse `more` bytes that would bring an owner over the limit. Raises StorageLimitExceeded."""
    if limit is None:
        return
    hold(connection, owner)
    used = stored_bytes(connection, owner)
    if used + more > limit:
        stands = f"{owner} stores {used} bytes, and {more} more would pass the limit of {limit}"
        if not more:
            stands = f"{owner} would store {used} bytes, which passes the limit of {limit}"
        raise StorageLimitExceeded(f"{stands}; delete files or prefixes first")


def reserve(connection: Connection, owner: str, sizes: Mapping[str, int], limit: int | None) -> None:
    """Refuse files, by digest, that would bring an owner over the limit. Raises StorageLimitExceeded."""
    if limit is None:
        return
    hold(connection, owner)
    mine = _files(owner)
    counted = set(connection.execute(select(mine.c.digest).where(mine.c.digest.in_(sizes))).scalars())
    check(connection, owner, sum(size for digest, size in sizes.items() if digest not in counted), limit)


def _files(owner: str | None) -> Subquery:
    """Owner and digest of each file that counts."""
    parts = [select(table.c.owner, table.c.digest) for table in FILE_USERS]
    parts.append(select(blob_owner.c.owner, blob_owner.c.digest).where(not_(is_named(blob_owner.c.digest))))
    if owner is not None:
        tables = (*FILE_USERS, blob_owner)
        parts = [part.where(table.c.owner == owner) for part, table in zip(parts, tables, strict=True)]
    return union(*parts).subquery()
