"""Forget: everything of one owner goes, and a report says what that was."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, delete, func, or_, select, update

from foreword.errors import CannotWrite
from foreword.store import access
from foreword.store.access import Caller
from foreword.store.blobs import Blobs
from foreword.store.database import Database
from foreword.store.maintenance import remove_unnamed
from foreword.store.names import folder_name
from foreword.store.schema import api_key, job, now, prefix, setting, share, upload, version

JOBS = ".jobs"
"""Folder for the checkpoints of a server's jobs, below the store's folder for checkpoints."""


@dataclass(frozen=True)
class Forgotten:
    """What was removed.

    Attributes:
        owner: who was forgotten.
        prefixes: names.
        versions: of those names.
        blobs: files that nobody else's version names.
        blobs_kept: files that another owner's version names too, byte for byte the same.
        size: bytes of the removed files.
        shares: shares given and received.
        keys: API keys.
        uploads: files of examples that were sent to a server.
        jobs: training that a server did or should do.
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
    checkpoints: int
    cached: int

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)


def forget_catalogue(catalogue: Database, blobs: Blobs, caller: Caller, owner: str) -> Forgotten:
    """Remove rows, then files; killed in between, garbage collection removes the files.

    Audit entries keep who, what, when and digest, and lose the names of the prefixes.

    Raises:
        StoreUnavailable, CannotWrite: repeat the call, it goes on where it stopped.
    """

    def count(connection: Connection, query: Any) -> int:
        return int(connection.execute(query).scalar_one())

    def work(connection: Connection) -> tuple[dict[str, int], list[str]]:
        mine = version.c.owner == owner
        digests = connection.execute(select(version.c.digest).where(mine).distinct()).scalars().all()
        counted = {
            "versions": count(connection, select(func.count()).select_from(version).where(mine)),
            "prefixes": count(
                connection, select(func.count()).where(prefix.c.owner == owner, prefix.c.latest.is_not(None))
            ),
        }
        given_or_received = or_(share.c.owner == owner, share.c.grantee == owner)
        counted["shares"] = connection.execute(delete(share).where(given_or_received)).rowcount
        counted["keys"] = connection.execute(delete(api_key).where(api_key.c.owner == owner)).rowcount
        counted["uploads"] = connection.execute(delete(upload).where(upload.c.owner == owner)).rowcount
        counted["jobs"] = connection.execute(delete(job).where(job.c.owner == owner)).rowcount
        connection.execute(delete(prefix).where(prefix.c.owner == owner))  # versions and labels with it
        access.strip(connection, owner)
        entry = access.note(connection, caller, "forget", owner, None)
        # Every cache compares this number at each call, see cache.py.
        connection.execute(update(setting).where(setting.c.name == "forgotten").values(value=str(entry)))
        return counted, list(digests)

    counted, digests = catalogue.write(work)
    removed = [
        size for digest in digests if (size := remove_unnamed(catalogue, blobs, digest, now())) is not None
    ]
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


def forget_folder(folder: Path, owner: str) -> int:
    """Remove an owner's folder below `folder`; how many files it had.

    Raises:
        CannotWrite: no right.
    """
    return _remove(folder / folder_name(owner))


def _remove(place: Path) -> int:
    count = sum(len(files) for _, _, files in os.walk(place))
    attempts = 0
    while place.is_dir():
        attempts += 1
        try:
            shutil.rmtree(place)
        except OSError as error:
            # A process that trains may be writing its last checkpoint; then a file comes or goes meanwhile.
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT) or attempts >= ATTEMPTS:
                raise CannotWrite(
                    f"{place} could not be removed: {error.strerror}; repeat the call"
                ) from error
            time.sleep(PAUSE_SECONDS)
    return count


def job_folders(catalogue: Database, folder: Path, owner: str) -> list[Path]:
    """Where the checkpoints of an owner's jobs on a server lie; ask before the jobs are gone."""
    rows = catalogue.rows(select(job.c.id).where(job.c.owner == owner))
    return [job_folder(folder, row.id) for row in rows]


def job_folder(folder: Path, identifier: str) -> Path:
    """The folder of one job's checkpoints below the store's; no owner's folder begins with a dot."""
    return folder / JOBS / f"@{identifier}"


def remove_folders(folders: list[Path]) -> int:
    """Remove those that are there; how many files they had.

    Raises:
        CannotWrite: no right.
    """
    return sum(_remove(folder) for folder in folders)
