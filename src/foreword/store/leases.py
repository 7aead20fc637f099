"""Leases: how a file comes into the store while garbage collection runs beside.

  1. lease: the blob's row is committed before its file is there (`ready` false at first);
  2. upload: the file is on the disk, flushed;
  3. claim: in the transaction that adds the version, the row must still have the same key.
Garbage collection removes rows that no version names, in a transaction, and then their files. A
put whose row went away between 1 and 3 starts again, with another key; so no order of events
loses a file that a version names, whatever the clocks say.

Killed after 1, the row is garbage, and its file if it came so far; killed in 3, the transaction is undone and
both are garbage. Never is a version listed whose file is not safe.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Connection, select

from foreword.errors import DamagedBlob, StoreUnavailable
from foreword.store import quota
from foreword.store.blobs import Blobs, new_key, read_checked
from foreword.store.database import Database, insert
from foreword.store.schema import blob, blob_owner, now

T = TypeVar("T")

ATTEMPTS = 50
UPLOADS = 8
"""Files in flight at a time: disks and buckets flush several for the price of one."""


@dataclass(frozen=True)
class Lease:
    """The right to expect the file of `digest` under `key`; `ready` when a version named it already."""

    digest: str
    key: str
    ready: bool


class LostLease(Exception):
    """Garbage collection took the row; start again."""


def deposit(
    database: Database,
    blobs: Blobs,
    contents: Mapping[str, bytes],
    owners: Mapping[str, Collection[str]],
    commit: Callable[[Connection], T],
    *,
    limit: int | None = None,
) -> T:
    """Store files, then `commit` the versions that name them: both, or neither is listed.

    Args:
        contents: bytes by digest.
        owners: digests of the files that each owner puts.
        commit: adds the versions; runs again if the database or garbage collection says so.
        limit: bytes that each of the owners may store, asked before the upload and again with the versions.

    Raises:
        StorageLimitExceeded: nothing is listed.
        CannotWrite, StoreUnavailable: nothing is listed; a file may stay until garbage collection.
    """
    digests = sorted(contents)  # one order for all: no two writers wait for each other in a circle

    def take(connection: Connection) -> list[Lease]:
        for owner in sorted(owners):
            quota.reserve(connection, owner, {name: len(contents[name]) for name in owners[owner]}, limit)
        leases = [_lease(connection, digest, len(contents[digest])) for digest in digests]
        for owner in sorted(owners):
            note_owner(connection, owner, owners[owner])
        return leases

    for _ in range(ATTEMPTS):
        # Not durable: the commit of the version flushes this one, too, and without a version it is garbage.
        leases = database.write(take, durable=False)
        _upload(blobs, leases, contents)

        def add(connection: Connection, leases: list[Lease] = leases) -> T:
            if limit is not None:
                for owner in sorted(owners):  # before anything else is held, as in `take`
                    quota.hold(connection, owner)
            for lease in leases:
                _claim(connection, lease)
            result = commit(connection)
            for owner in sorted(owners):
                quota.check(connection, owner, 0, limit)
            return result

        with contextlib.suppress(LostLease):
            return database.write(add)
    raise StoreUnavailable(
        f"garbage collection took the same file {ATTEMPTS} times while it was being stored; "
        "collect less often, or with a longer grace time"
    )


def note_owner(connection: Connection, owner: str, digests: Collection[str]) -> None:
    """Remember who has put files, for as long as these take space (see quota.py)."""
    rows = [{"owner": owner, "digest": digest} for digest in sorted(digests)]
    connection.execute(insert(connection, blob_owner).on_conflict_do_nothing(), rows)


def _lease(connection: Connection, digest: str, size: int) -> Lease:
    moment = now()
    values = {"digest": digest, "key": new_key(digest), "size": size, "ready": False}
    values |= {"touched": moment, "checked": moment}
    fresh = insert(connection, blob).values(values)
    # One statement, so that two puts of the same file share one row and one key; the newer time keeps garbage
    # collection away from it for another while.
    taken = fresh.on_conflict_do_update(index_elements=["digest"], set_={"touched": fresh.excluded.touched})
    row = connection.execute(taken.returning(blob.c.key, blob.c.ready)).one()
    return Lease(digest, row.key, row.ready)


def _claim(connection: Connection, lease: Lease) -> None:
    query = select(blob.c.key, blob.c.ready, blob.c.fault).where(blob.c.digest == lease.digest)
    # Locked until the version is committed: garbage collection skips rows that somebody holds.
    row = connection.execute(query.with_for_update()).first()
    if row is None or row.key != lease.key:
        raise LostLease
    if not row.ready or row.fault is not None:  # `_upload` has put right what was altered
        whole = {"ready": True, "fault": None, "checked": now()}
        connection.execute(blob.update().where(blob.c.digest == lease.digest).values(whole))


def _upload(blobs: Blobs, leases: list[Lease], contents: Mapping[str, bytes]) -> None:
    def store(lease: Lease) -> None:
        if lease.ready:
            # The same file was stored before. Trust it after a look; else put it right.
            with contextlib.suppress(DamagedBlob):
                read_checked(blobs, lease.key, lease.digest)
                return
        blobs.write(lease.key, contents[lease.digest])

    if len(leases) == 1:
        store(leases[0])
        return
    with ThreadPoolExecutor(UPLOADS) as pool:
        for _ in pool.map(store, leases):
            pass
