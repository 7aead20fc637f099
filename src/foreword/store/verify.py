"""Verify: read every stored file again and hold its SHA-256 against the catalogue."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, tuple_

from foreword.errors import DamagedBlob, MissingBlob
from foreword.store.blobs import Blobs, read_checked
from foreword.store.database import Catalogue
from foreword.store.tables import blob, version

BATCH = 500


@dataclass(frozen=True)
class Problem:
    """A version that can't be read.

    Attributes:
        reference: `owner/name@number`.
        digest: what its file should have.
        fault: "missing" or "altered".
    """

    reference: str
    digest: str
    fault: str


@dataclass(frozen=True)
class Verification:
    """What a verification saw.

    Attributes:
        versions: how many were looked at.
        size: bytes of files that were read.
        problems: versions whose file is gone or altered.
    """

    versions: int
    size: int
    problems: tuple[Problem, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)


def verify(catalogue: Catalogue, blobs: Blobs, owner: str | None) -> Verification:
    """Check every version, of one owner or all. Versions deleted meanwhile are no problem.

    Raises:
        StoreUnavailable: the database or the storage does not answer.
    """
    here = (version.c.owner, version.c.name, version.c.number)
    query = select(*here, version.c.digest, blob.c.key, blob.c.size).join(
        blob, blob.c.digest == version.c.digest
    )
    query = query.order_by(*here).limit(BATCH)
    if owner is not None:
        query = query.where(version.c.owner == owner)
    faults: dict[str, str | None] = {}  # by digest: shared files are read once
    problems, versions, size = [], 0, 0
    rows = catalogue.rows(query)
    while rows:
        for row in rows:
            versions += 1
            if row.digest not in faults:
                faults[row.digest] = _fault(catalogue, blobs, row)
                size += row.size
            if fault := faults[row.digest]:
                problems.append(Problem(f"{row.owner}/{row.name}@{row.number}", row.digest, fault))
        last = rows[-1]
        behind = query.where(tuple_(*here) > tuple_(last.owner, last.name, last.number))
        rows = catalogue.rows(behind)
    return Verification(versions, size, tuple(problems))


def _fault(catalogue: Catalogue, blobs: Blobs, row: Any) -> str | None:
    try:
        read_checked(blobs, row.key, row.digest)
    except DamagedBlob as error:
        if _is_current(catalogue, row):
            return "missing" if isinstance(error, MissingBlob) else "altered"
    return None


def _is_current(catalogue: Catalogue, row: Any) -> bool:
    """Whether the version is still listed with this file: it may have been deleted and collected."""
    query = select(blob.c.key).join(version, blob.c.digest == version.c.digest)
    return bool(catalogue.rows(query.where(version.c.digest == row.digest, blob.c.key == row.key).limit(1)))
