"""Checkpoints of jobs among the store's files, so that a job goes on where another machine left it.

Training writes its checkpoints into a folder of its own machine; each is then copied here, and the store has
the newest of each job. Whoever claims a job of which the store has a later step than the folder takes that.
They count among the bytes that the job's owner stores, and go when the job ends.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from sqlalchemy import Connection, select

from foreword import files
from foreword.errors import DamagedBlob, StorageLimitExceeded, StoreUnavailable
from foreword.serving import logs
from foreword.serving.jobs import queue
from foreword.serving.jobs.queue import Job
from foreword.store import PrefixStore
from foreword.store.blobs import check_there, read_checked
from foreword.store.database import insert
from foreword.store.leases import deposit
from foreword.store.maintenance import drop_ended, remove_unnamed
from foreword.store.schema import blob, job, job_checkpoint, now
from foreword.training.checkpoint import file_name, list_checkpoints, prepare_folder, step_of

LARGEST_BYTES = 256 << 20
"""A larger one stays on the machine that wrote it: it is read into memory as a whole."""


def save(store: PrefixStore, worker: str, record: Job, path: Path) -> None:
    """Copy a checkpoint into the store, in the place of the job's last one there.

    One that is too large, or more than its owner may store, stays on this machine alone.

    Raises:
        NotClaimed: the job is no longer this worker's; nothing stays.
        StoreUnavailable, CannotWrite: the last one is still there.
        OSError: so it is; the new one could not be read.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_BYTES:
            logs.event("checkpoint not stored", job=record.id, size=size, most=LARGEST_BYTES)
            return
        content = path.read_bytes()
    except FileNotFoundError as error:  # its owner was forgotten since it was written
        raise queue.NotClaimed from error
    digest = hashlib.sha256(content).hexdigest()

    def commit(connection: Connection) -> str | None:
        queue.check_claimed(connection, worker, record.id)
        last = connection.execute(
            select(job_checkpoint.c.digest).where(job_checkpoint.c.job == record.id)
        ).scalar()
        values = {"digest": digest, "step": step_of(path), "created": now()}
        fresh = insert(connection, job_checkpoint).values(job=record.id, owner=record.owner, **values)
        connection.execute(fresh.on_conflict_do_update(index_elements=["job"], set_=values))
        return last

    limit = stored_bytes_of(record)
    try:
        last = deposit(
            store.database, store.blobs, {digest: content}, {record.owner: {digest}}, commit, limit=limit
        )
    except queue.NotClaimed:
        remove_file(store, digest)
        raise
    except StorageLimitExceeded as error:
        logs.failure("checkpoint not stored", error, job=record.id, size=len(content))
        return
    if last not in (None, digest):
        remove_file(store, last)


def fetch(store: PrefixStore, record: Job, folder: Path) -> bool:
    """Bring the store's checkpoint of a job into its folder here, where that has no later one.

    Returns:
        Whether the store has none that can't be used: false for a file that is missing or was altered, or
        that could not be read at the job's earlier attempts either.

    Raises:
        StoreUnavailable: the store does not answer, or not for this file.
        CannotWrite: the folder can't be written.
    """
    query = select(job_checkpoint.c.step, blob.c.digest, blob.c.key)
    of_job = query.join(blob, blob.c.digest == job_checkpoint.c.digest).where(
        job_checkpoint.c.job == record.id
    )
    for row in store.database.rows(of_job):
        if max(map(step_of, list_checkpoints(folder)), default=-1) >= row.step:
            continue
        try:
            content = read_checked(store.blobs, row.key, row.digest)
        except (DamagedBlob, StoreUnavailable) as error:
            # One that can't be read now may be read later; at the last attempt it is worth no more than none.
            if isinstance(error, StoreUnavailable):
                check_there(store.blobs)
                if record.attempts + 1 < queue.MOST_ATTEMPTS:
                    raise
            logs.failure("checkpoint not usable", error, job=record.id)
            drop(store, record.id)
            return False
        prepare_folder(folder)
        files.write_bytes(folder / file_name(row.step), content, overwrite=True)
    return True


def differs(store: PrefixStore, identifier: str, folder: Path) -> bool:
    """Whether the store has a checkpoint of the job, and another one than the newest in this folder."""
    query = select(job_checkpoint.c.digest).where(job_checkpoint.c.job == identifier)
    here: set[str] = set()
    for path in list_checkpoints(folder)[-1:]:
        with contextlib.suppress(OSError):  # one that can't be read is the other
            here.add(hashlib.sha256(path.read_bytes()).hexdigest())
    return any(row.digest not in here for row in store.database.rows(query))


def drop(store: PrefixStore, identifier: str) -> bool:
    """Remove a job's checkpoint from the store; whether there was one."""
    digest = store.database.write(lambda connection: queue.drop_checkpoint(connection, identifier))
    if digest is not None:
        remove_file(store, digest)
    return digest is not None


def drop_of_ended(store: PrefixStore) -> None:
    """Remove what jobs that have ended left in the store, as when their worker was killed at that moment."""
    ended = select(job.c.id).where(job.c.id.in_(select(job_checkpoint.c.job)), job.c.finished.is_not(None))
    if store.database.rows(ended.limit(1)):  # a look first: workers ask often
        for digest in store.database.write(drop_ended):
            remove_file(store, digest)


def stored_bytes_of(record: Job) -> int | None:
    """Bytes that the job's owner may store, as it was when they made the job."""
    limit: int | None = record.asked.get("stored_bytes")
    return limit


def remove_file(store: PrefixStore, digest: str) -> None:
    """Remove the file with that digest, unless something else names it."""
    remove_unnamed(store.database, store.blobs, digest, now())
