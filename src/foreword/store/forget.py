"""Forgetting an owner: rows, then files; and a report of what was removed."""

from __future__ import annotations

import errno
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, delete, or_, select, update

from foreword.errors import CannotWrite
from foreword.store import access
from foreword.store.access import Caller
from foreword.store.blobs import Blobs
from foreword.store.database import Database
from foreword.store.maintenance import remove_unnamed
from foreword.store.names import folder_name
from foreword.store.record import Record
from foreword.store.schema import (
    api_key,
    audit,
    blob_owner,
    job,
    now,
    prefix,
    setting,
    share,
    upload,
    usage,
    version,
)
from foreword.store.usage import hold_back

FORGOTTEN = "(forgotten)"
"""Stands in the audit table for the names of a forgotten owner's prefixes; who, when and digest stay."""
JOBS = ".jobs"
"""Folder for the checkpoints of a server's jobs, below the store's folder for checkpoints."""


@dataclass(frozen=True)
class Forgotten(Record):
    """What was removed.

    Attributes:
        prefixes: names.
        blobs: files that nobody else's version names.
        blobs_kept: files that another owner's version names too, byte for byte the same.
        size: bytes of the removed files.
        shares: shares given and received.
        uploads: files of examples that were sent to a server.
        jobs: training that a server did or should do.
        usage_days: days of which it was known what the owner used.
        checkpoints: files in the owner's checkpoint folder.
        cached: files in this machine's disk cache; every other cache drops its own at its next call.
    """

    owner: str
    prefixes: int
    versions: int
    blobs: int
    blobs_kept: int
    size: int
    shares: int
    keys: int
    uploads: int
    jobs: int
    usage_days: int
    checkpoints: int
    cached: int


def forget_rows(database: Database, blobs: Blobs, caller: Caller, owner: str) -> Forgotten:
    """Remove an owner's rows in one transaction, then the files that no version names any more.

    The order matters: a row without its file would be a version that can't be read, while a file without a
    row is garbage. Killed in between, the next garbage collection removes the files; repeated, this goes on
    where it stopped. Audit entries keep who, what, when and digest, and lose the names of the prefixes.
    """

    def work(connection: Connection) -> tuple[dict[str, int], set[str]]:
        # Keys and jobs first: whoever adds something under one holds it until that is committed, so that it
        # is seen below, or finds it gone and adds nothing.
        counted = {}
        hold_back(connection, owner, forgetting=True)
        for what, table in (("keys", api_key), ("jobs", job), ("uploads", upload), ("usage_days", usage)):
            counted[what] = connection.execute(delete(table).where(table.c.owner == owner)).rowcount
        rows = connection.execute(
            select(version.c.name, version.c.digest).where(version.c.owner == owner)
        ).all()
        counted |= {"versions": len(rows), "prefixes": len({row.name for row in rows})}
        digests = {row.digest for row in rows}
        # What they deleted may wait for garbage collection still.
        put = delete(blob_owner).where(blob_owner.c.owner == owner).returning(blob_owner.c.digest)
        digests |= set(connection.execute(put).scalars())
        given_or_received = or_(share.c.owner == owner, share.c.grantee == owner)
        counted["shares"] = connection.execute(delete(share).where(given_or_received)).rowcount
        connection.execute(delete(prefix).where(prefix.c.owner == owner))  # versions and labels with it
        connection.execute(update(audit).where(audit.c.owner == owner).values(target=f"{owner}/{FORGOTTEN}"))
        entry = access.note(connection, caller, "forget", owner, None)
        # Every cache compares this number at each call, see cache.py.
        connection.execute(update(setting).where(setting.c.name == "forgotten").values(value=str(entry)))
        return counted, digests

    counted, digests = database.write(work)
    sizes = [remove_unnamed(database, blobs, digest, now()) for digest in digests]
    removed = [size for size in sizes if size is not None]
    return Forgotten(
        owner=owner,
        blobs=len(removed),
        blobs_kept=len(digests) - len(removed),
        size=sum(removed),
        checkpoints=0,
        cached=0,
        **counted,
    )


ATTEMPTS, PAUSE_SECONDS = 100, 0.05
"""For a writer who has not noticed yet: some seconds in all."""


def checkpoint_folders(database: Database, folder: Path | None, jobs_folder: Path, owner: str) -> list[Path]:
    """Where an owner's checkpoints lie on this machine, those of their jobs on a server too.

    Ask before `forget_rows`: the rows of the jobs name the folders. A job's folder begins with a sign that no
    owner's can.
    """
    jobs = database.rows(select(job.c.id).where(job.c.owner == owner))
    own = [] if folder is None else [folder / folder_name(owner)]
    return [*own, *(jobs_folder / f"@{row.id}" for row in jobs)]


def remove_folders(folders: list[Path]) -> int:
    """Remove those that are there; how many files they had. Raises CannotWrite: no right."""
    count = 0
    for place in folders:
        count += sum(len(files) for _, _, files in os.walk(place))
        attempts = 0
        while place.is_dir():
            attempts += 1
            try:
                shutil.rmtree(place)
            except OSError as error:
                # A process that trains may be writing its last checkpoint: a file comes or goes meanwhile.
                if error.errno not in (errno.ENOTEMPTY, errno.ENOENT) or attempts >= ATTEMPTS:
                    raise CannotWrite(
                        f"{place} could not be removed: {error.strerror}; repeat the call"
                    ) from error
                time.sleep(PAUSE_SECONDS)
    return count
