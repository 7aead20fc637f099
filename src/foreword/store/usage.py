"""Usage: what each owner used, by day: what a bill is made from.

`add` joins a transaction and adds to the row of a day in one statement, so that any number of servers add to
the same row. A server collects what its requests use in memory (`Meter`) and writes it every few seconds.
Every write has a number, by which one is known that was done though its answer was lost.
"""

from __future__ import annotations

import datetime
import secrets
import threading
from collections import Counter
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, case, select, text, tuple_

from foreword.errors import UsageError
from foreword.store.access import Caller, check_scope
from foreword.store.database import Database, insert
from foreword.store.quota import stored
from foreword.store.record import Record
from foreword.store.schema import audit, now, task, usage

NOBODY = "(administrators)"
"""Stands for the owner of what is used with an administrator's key; no owner can be called so."""
COUNTS = ("requests", "prompt_tokens", "completion_tokens", "training_steps", "trained_tokens")
LARGEST_PAGE = 1000
_BATCH = 500
_FORGET_LOCK = 0x666F7265 + 3
"""Class of the PostgreSQL advisory locks of owners who are being forgotten."""
_METER = "usage "
_METER_SECONDS = 7 * 24 * 3600.0
"""How long it is known which write of a server was its last: it asks again within seconds."""


@dataclass(frozen=True)
class Usage(Record):
    """What an owner used on one day.

    Attributes:
        day: UTC, as in 2026-01-31.
        requests: for texts.
        prompt_tokens, completion_tokens: read and written; virtual ones are not among them.
        training_steps, trained_tokens: of jobs that ended on that day.
        stored_bytes: the most that was seen on that day, where a server looks about every hour.
    """

    owner: str
    day: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    training_steps: int
    trained_tokens: int
    stored_bytes: int


def today() -> str:
    """The day of this moment."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def add(connection: Connection, owner: str, day: str | None = None, **counts: int) -> None:
    """Add to what an owner used, today or on another day; `counts` by the names in `COUNTS`."""
    row = {**dict.fromkeys((*COUNTS, "stored_bytes"), 0), **counts, "owner": owner, "day": day or today()}
    fresh = insert(connection, usage).values(row)
    sums = {name: usage.c[name] + fresh.excluded[name] for name in counts}
    connection.execute(fresh.on_conflict_do_update(index_elements=["owner", "day"], set_=sums))


def sample_stored_bytes(database: Database) -> None:
    """Note how many bytes each owner stores now, where it is more than was seen before today."""
    day, rows = today(), database.rows(stored())
    zero = dict.fromkeys(COUNTS, 0)
    for start in range(0, len(rows), _BATCH):
        values = [
            {**zero, "owner": row.owner, "day": day, "stored_bytes": int(row.bytes)}
            for row in rows[start : start + _BATCH]
        ]

        def write(connection: Connection, values: list[dict[str, object]] = values) -> None:
            # What was read may be of an owner who has been forgotten since.
            values = [row for row in values if takes_usage(connection, str(row["owner"]))]
            if not values:
                return
            fresh = insert(connection, usage)
            most = case(
                (fresh.excluded.stored_bytes > usage.c.stored_bytes, fresh.excluded.stored_bytes),
                else_=usage.c.stored_bytes,
            )
            connection.execute(
                fresh.on_conflict_do_update(index_elements=["owner", "day"], set_={"stored_bytes": most}),
                values,
            )

        database.write(write, durable=False)
    ended = task.delete().where(task.c.name.startswith(_METER), task.c.finished < now(_METER_SECONDS))
    database.write(lambda connection: connection.execute(ended), durable=False)


def listed(
    connection: Connection,
    caller: Caller,
    owner: str | None = None,
    start: str | None = None,
    end: str | None = None,
    limit: int = LARGEST_PAGE,
    after: str | None = None,
) -> tuple[Usage, ...]:
    """Usage by day and owner, oldest first; see `PrefixStore.usage`."""
    check_scope(caller, owner, "read what all owners used")
    if not 1 <= limit <= LARGEST_PAGE:
        raise UsageError(f"limit is {limit}; expected 1 to {LARGEST_PAGE} rows a page")
    place = (usage.c.day, usage.c.owner)
    query = select(usage).order_by(*place).limit(limit)
    if owner is not None:
        query = query.where(usage.c.owner == owner)
    if start is not None:
        query = query.where(usage.c.day >= _checked_day("start", start))
    if end is not None:
        query = query.where(usage.c.day <= _checked_day("end", end))
    if after is not None:
        day, _, last = after.partition("/")
        query = query.where(tuple_(*place) > tuple_(_checked_day("after", day), last))
    return tuple(Usage(**row) for row in connection.execute(query).mappings())


def _checked_day(name: str, value: str) -> str:
    try:
        if len(value) != len("2026-01-31"):
            raise ValueError
        return datetime.date.fromisoformat(value).isoformat()
    except ValueError as error:
        raise UsageError(f"{name} is {value[:40]!a}; expected a day such as 2026-01-31") from error


class Meter:
    """What owners have used since it was last written down. Safe in threads."""

    def __init__(self) -> None:
        self._lock, self._flushing = threading.Lock(), threading.Lock()
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._name = _METER + secrets.token_hex(8)
        self._unconfirmed: tuple[str, Counter[tuple[str, str, str]]] | None = None

    def add(self, owner: str | None, **counts: int) -> None:
        """Count for an owner; None for an administrator's key."""
        day = today()
        with self._lock:
            for name, number in counts.items():
                self._counts[owner or NOBODY, day, name] += number

    def flush(self, database: Database) -> None:
        """Write down what has been counted, each of it once.

        What is counted for an owner who has been forgotten since is dropped.

        Raises:
            StoreUnavailable, CannotWrite: it stays counted, for the next time. It is then written under the
                same number, unless the store has that one: the write was done, and its answer lost.
        """
        with self._flushing:
            while (taken := self._take()) is not None:
                number, counted = taken
                rows: dict[tuple[str, str], dict[str, int]] = {}
                for (owner, day, name), count in counted.items():
                    rows.setdefault((owner, day), {})[name] = count

                def write(connection: Connection, number: str = number, rows: Any = rows) -> None:
                    if not self._begins(connection, number):
                        return
                    for (owner, day), counts in sorted(rows.items()):  # one order of locks for every server
                        if takes_usage(connection, owner):
                            add(connection, owner, day, **counts)

                database.write(write)
                self._unconfirmed = None

    def _take(self) -> tuple[str, Counter[tuple[str, str, str]]] | None:
        """What is to be written next: what may not have been written the last time, before what is new."""
        with self._lock:
            if self._unconfirmed is None and self._counts:
                self._unconfirmed, self._counts = (secrets.token_hex(8), self._counts), Counter()
        return self._unconfirmed

    def _begins(self, connection: Connection, number: str) -> bool:
        """Note in the transaction that this write is the last; False where it was already.

        A first attempt whose answer was lost may not have ended yet: its row is waited for.
        """
        fresh = insert(connection, task).values(name=self._name, holder=number, finished=now())
        other = fresh.on_conflict_do_update(
            index_elements=["name"],
            set_={"holder": fresh.excluded.holder, "finished": fresh.excluded.finished},
            where=task.c.holder != fresh.excluded.holder,
        )
        return connection.execute(other.returning(task.c.name)).first() is not None


def takes_usage(connection: Connection, owner: str) -> bool:
    """Whether usage of an owner may be added, who then is not forgotten before the transaction ends."""
    hold_back(connection, owner, forgetting=False)
    return not is_forgotten(connection, owner)


def hold_back(connection: Connection, owner: str, *, forgetting: bool) -> None:
    """Let nobody forget an owner, or add to their usage, until this transaction ends."""
    if connection.dialect.name == "postgresql":  # SQLite has one writer anyway
        kind = "" if forgetting else "_shared"
        lock = text(f"SELECT pg_advisory_xact_lock{kind}(:kind, hashtext(:owner))")
        connection.execute(lock, {"kind": _FORGET_LOCK, "owner": owner})


def is_forgotten(connection: Connection, owner: str) -> bool:
    """Whether the last thing that was done for an owner was to forget them."""
    newest = select(audit.c.action).where(audit.c.owner == owner).order_by(audit.c.id.desc()).limit(1)
    return connection.execute(newest).scalar() == "forget"
