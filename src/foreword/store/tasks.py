"""Tasks: work of the store itself, of which one process on it does each at a time.

Three are done by every server, beside its requests (`serving/upkeep.py`): its files are read again slowly, so
that one which has gone bad is known before somebody asks for it; what each owner stores is noted; and files
that nothing names any more are removed, since they count for their owners until then.

A process claims a task for some seconds, in one statement. Whoever is killed over it loses it when these are
over. All share the table, so none needs to know of the others.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, and_, func, or_, select

from foreword.errors import DamagedBlob, MissingBlob, StoreUnavailable
from foreword.store.blobs import Blobs, check_there, read_checked
from foreword.store.database import Database, insert
from foreword.store.record import Record
from foreword.store.schema import blob, now, task

BYTES_A_SECOND = 16 << 20
"""How fast files are checked: 1.3 TB a day, a small part of what a disk or a bucket gives."""
BATCH = 64
DAMAGED = ("altered", "unreadable")
"""What `fault_of` says of a file that is there."""


def claim(database: Database, name: str, holder: str, *, seconds: float, every: float = 0.0) -> bool:
    """Whether `holder` is to do the task now, and may for so many seconds; a holder may claim again.

    Args:
        every: seconds that must have gone by since it was last finished.
    """

    def work(connection: Connection) -> bool:
        values = {"holder": holder, "until": now(-seconds)}
        free = or_(task.c.holder.is_(None), task.c.holder == holder, task.c.until < now())
        due = or_(task.c.finished.is_(None), task.c.finished <= now(every))
        fresh = insert(connection, task).values(name=name, **values)
        taken = fresh.on_conflict_do_update(index_elements=["name"], set_=values, where=and_(free, due))
        return connection.execute(taken.returning(task.c.name)).first() is not None

    # A look first: a server asks often, and almost always it is nobody's turn.
    row = next(iter(database.rows(select(task).where(task.c.name == name))), None)
    if row is not None:
        held = row.holder not in (None, holder) and row.until >= now()
        if held or (row.finished is not None and row.finished > now(every)):
            return False
    return database.write(work, durable=False)


def finish(database: Database, name: str, holder: str, *, done: bool = True) -> None:
    """Let a task go: it is done, or left to be claimed again at once."""
    mine = and_(task.c.name == name, task.c.holder == holder)
    values = {"holder": None, "until": None, **({"finished": now()} if done else {})}
    let_go = task.update().where(mine).values(values)
    database.write(lambda connection: connection.execute(let_go), durable=False)


@dataclass(frozen=True)
class Checked(Record):
    """What a check of some files saw.

    Attributes:
        files: that were read.
        size: their bytes.
        damaged, missing: digests of files that can't be used.
    """

    files: int = 0
    size: int = 0
    damaged: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def __add__(self, other: Checked) -> Checked:
        return Checked(
            self.files + other.files,
            self.size + other.size,
            self.damaged + other.damaged,
            self.missing + other.missing,
        )


def check_files(
    database: Database,
    blobs: Blobs,
    *,
    older_than: float,
    pause: Callable[[float], bool],
) -> Checked:
    """Read some files again that were not checked for `older_than` seconds, the longest unchecked first.

    They are at most `BATCH`; none is left when the result has none. What is seen of each is written into its
    row, whose `fault` a later put of the same file mends.

    Args:
        pause: called after each file with the seconds that it should take, by `BYTES_A_SECOND`; true to stop.

    Raises:
        StoreUnavailable: the storage does not answer; nothing is called damaged.
    """
    seen = Checked()
    due = select(blob.c.digest, blob.c.key, blob.c.size).where(blob.c.ready, blob.c.checked < now(older_than))
    for row in database.rows(due.order_by(blob.c.checked).limit(BATCH)):
        fault = fault_of(blobs, row.key, row.digest)
        note_check(database, row.key, fault)
        damaged = (row.digest,) if fault in DAMAGED else ()
        seen += Checked(1, row.size, damaged, (row.digest,) if fault == "missing" else ())
        if pause(row.size / BYTES_A_SECOND):
            break
    return seen


def are_due(database: Database, older_than: float) -> bool:
    """Whether `check_files` would find any."""
    due = select(blob.c.key).where(blob.c.ready, blob.c.checked < now(older_than))
    return bool(database.rows(due.limit(1)))


def fault_of(blobs: Blobs, key: str, digest: str) -> str | None:
    """What is wrong with a file: "missing", "altered" or "unreadable".

    Raises:
        StoreUnavailable: the place for files is away, not this one alone.
    """
    try:
        read_checked(blobs, key, digest)
    except DamagedBlob as error:
        return "missing" if isinstance(error, MissingBlob) else "altered"
    except StoreUnavailable:  # a bad sector under this file alone must not keep the others from being read
        check_there(blobs)
        return "unreadable"
    return None


def note_check(database: Database, key: str, fault: str | None) -> None:
    """Write down how a file was seen; not when it was removed meanwhile, and its row with it."""
    seen = blob.update().where(blob.c.key == key).values(checked=now(), fault=fault)
    database.write(lambda connection: connection.execute(seen), durable=False)


def checks(database: Database) -> dict[str, float]:
    """Files that were damaged or missing when they were last read, and since when (Unix time) every file of
    the store has been read."""
    faults = database.rows(
        select(blob.c.fault, func.count().label("number"))
        .where(blob.c.fault.is_not(None))
        .group_by(blob.c.fault)
    )
    counted = {row.fault: float(row.number) for row in faults}
    (oldest,) = database.rows(select(func.min(blob.c.checked).label("at")).where(blob.c.ready))
    return {
        "damaged": sum(counted.get(fault, 0.0) for fault in DAMAGED),
        "missing": counted.get("missing", 0.0),
        "all_checked_since": datetime.datetime.fromisoformat(oldest.at).timestamp() if oldest.at else 0.0,
    }
