"""Maintenance: removing files that no version names, and reading every file again to check it.

Garbage collection must never take a file that is needed. A row goes in a transaction, its file only
afterwards, and a key is never used again: whoever puts the same prefix at that moment gets another key (see
leases.py). Killed in between, a file without a row stays behind; `_leftovers` finds those.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, literal, not_, select, tuple_

from foreword.errors import UsageError
from foreword.files import TEMPORARY_SUFFIX
from foreword.store.blobs import Blobs, Stored
from foreword.store.database import Database
from foreword.store.quota import is_named
from foreword.store.record import Record
from foreword.store.schema import blob, job, job_checkpoint, now, version
from foreword.store.tasks import fault_of

GRACE_SECONDS = 3600.0
"""How long an unnamed file stays. Puts are safe without it; it spares a slow upload its second try."""
BATCH = 200


@dataclass(frozen=True)
class Collected(Record):
    """What a garbage collection removed, or would remove.

    Attributes:
        blobs: files that no version named any more.
        leftovers: files without a row, of processes that were killed.
        size: bytes of both.
    """

    blobs: int = 0
    leftovers: int = 0
    size: int = 0


def collect(database: Database, blobs: Blobs, grace: float, *, dry_run: bool) -> Collected:
    """Remove files that no version has named for `grace` seconds; stopped, what is removed stays removed."""
    if grace < 0:
        raise UsageError(f"the grace time is {grace} seconds; expected 0 or more")
    if dry_run:
        gone = [row.size for row in _unnamed(database, now(ago=grace))]
    else:
        gone = collect_unnamed(database, blobs, grace)
    left = list(_leftovers(database, blobs, grace))
    if not dry_run:
        for key, _ in left:
            blobs.remove(key)
    return Collected(len(gone), len(left), sum(gone) + sum(size for _, size in left))


def collect_unnamed(database: Database, blobs: Blobs, grace: float) -> list[int]:
    """Remove files that nothing has named for `grace` seconds, as the database knows them; their sizes.

    A server does this from time to time: what its owners deleted counts for them until it is gone.
    """
    database.write(drop_ended)
    old = now(ago=grace)
    removed = (remove_unnamed(database, blobs, row.digest, old) for row in _unnamed(database, old))
    return [size for size in removed if size is not None]


def drop_ended(connection: Connection) -> list[str]:
    """Let go of the checkpoints of jobs that have ended; digests of their files."""
    ended = job_checkpoint.c.job.in_(select(job.c.id).where(job.c.finished.is_not(None)))
    dropped = job_checkpoint.delete().where(ended).returning(job_checkpoint.c.digest)
    return list(connection.execute(dropped).scalars())


def _unnamed(database: Database, old: str) -> Sequence[Row[Any]]:
    unnamed = not_(is_named(blob.c.digest))
    return database.rows(select(blob.c.digest, blob.c.size).where(unnamed, blob.c.touched <= old))


def remove_unnamed(database: Database, blobs: Blobs, digest: str, touched_before: str) -> int | None:
    """Remove one blob if still no version names it; its size, or None when it stays."""

    def take(connection: Connection) -> Any:
        # First the lock, then the look: a put that holds the row commits its version before we see it.
        # A row that somebody holds is in use; it is left for the next time.
        held = select(blob.c.key, blob.c.size).where(
            blob.c.digest == digest, blob.c.touched <= touched_before
        )
        row = connection.execute(held.with_for_update(skip_locked=True)).first()
        if row is None or connection.execute(select(is_named(literal(digest)))).scalar_one():
            return None
        connection.execute(blob.delete().where(blob.c.digest == digest))
        return row

    # Not durable: a power cut brings the row back at worst, and the next collection takes it again.
    row = database.write(take, durable=False)
    if row is None:
        return None
    blobs.remove(row.key)
    return int(row.size)


def _leftovers(database: Database, blobs: Blobs, grace: float) -> Iterator[tuple[str, int]]:
    # A row is committed before its file is written, so a file without one has lost it. Only files
    # that are written under another name first need time, however little grace was asked for.
    def is_old(stored: Stored) -> bool:
        unfinished = stored.key.endswith(TEMPORARY_SUFFIX)
        return stored.age >= (max(grace, GRACE_SECONDS) if unfinished else grace)

    waiting = filter(is_old, blobs.each())
    while some := list(itertools.islice(waiting, BATCH)):
        keys = [stored.key for stored in some]
        known = {row.key for row in database.rows(select(blob.c.key).where(blob.c.key.in_(keys)))}
        yield from ((stored.key, stored.size) for stored in some if stored.key not in known)


VERIFY_BATCH = 500


@dataclass(frozen=True)
class Problem:
    """A version that can't be read: its file should have `digest` and is "missing" or "altered" (`fault`)."""

    reference: str
    digest: str
    fault: str


@dataclass(frozen=True)
class Verification(Record):
    """What a verification saw: how many versions, and the bytes of all files that were read."""

    versions: int
    size: int
    problems: tuple[Problem, ...]


def verify(database: Database, blobs: Blobs, owner: str | None) -> Verification:
    """Check every version, of one owner or all. Versions deleted meanwhile are no problem."""
    here = (version.c.owner, version.c.name, version.c.number)
    query = select(*here, version.c.digest, blob.c.key, blob.c.size).join(
        blob, blob.c.digest == version.c.digest
    )
    query = query.order_by(*here).limit(VERIFY_BATCH)
    if owner is not None:
        query = query.where(version.c.owner == owner)
    faults: dict[str, str | None] = {}  # by digest: shared files are read once
    problems, versions, size = [], 0, 0
    rows = database.rows(query)
    while rows:
        for row in rows:
            versions += 1
            if row.digest not in faults:
                faults[row.digest] = _fault(database, blobs, row)
                size += row.size
            if fault := faults[row.digest]:
                problems.append(Problem(f"{row.owner}/{row.name}@{row.number}", row.digest, fault))
        last = rows[-1]
        behind = query.where(tuple_(*here) > tuple_(last.owner, last.name, last.number))
        rows = database.rows(behind)
    return Verification(versions, size, tuple(problems))


def _fault(database: Database, blobs: Blobs, row: Any) -> str | None:
    fault = fault_of(blobs, row.key, row.digest)
    if fault is not None:
        # Only if a version is still listed with this file: it may have been deleted and collected.
        listed = select(blob.c.key).join(version, blob.c.digest == version.c.digest)
        if not database.rows(listed.where(version.c.digest == row.digest, blob.c.key == row.key).limit(1)):
            return None
    return fault
