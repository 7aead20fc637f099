"""Usage: what each owner used, by day: what a bill is made from.

`add` joins a transaction and adds to the row of a day in one statement, so that any number of servers add to
the same row. A server collects what its requests use in memory (`Meter`) and writes it every few seconds.
"""

from __future__ import annotations

import datetime
import threading
from collections import Counter
from dataclasses import dataclass

from sqlalchemy import Connection, case, select, tuple_

from foreword.errors import UsageError
from foreword.store.access import Caller, check_scope
from foreword.store.database import Database, insert
from foreword.store.quota import stored
from foreword.store.record import Record
from foreword.store.schema import audit, usage

NOBODY = "(administrators)"
"""Stands for the owner of what is used with an administrator's key; no owner can be called so."""
COUNTS = ("requests", "prompt_tokens", "completion_tokens", "training_steps", "trained_tokens")
LARGEST_PAGE = 1000
_BATCH = 500


@dataclass(frozen=True)
class Usage(Record):
    """What an owner used on one day.

    Attributes:
        day: UTC, as in 2026-01-31.
        requests: for texts.
        prompt_tokens, completion_tokens: read and written; virtual ones are not among them.
        training_steps, trained_tokens: of jobs that ended on that day, however they ended.
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
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str, str]] = Counter()

    def add(self, owner: str | None, **counts: int) -> None:
        """Count for an owner; None for an administrator's key."""
        day = today()
        with self._lock:
            for name, number in counts.items():
                self._counts[owner or NOBODY, day, name] += number

    def flush(self, database: Database) -> None:
        """Write down what has been counted.

        What is counted for an owner who has been forgotten since is dropped.

        Raises:
            StoreUnavailable, CannotWrite: it stays counted, for the next time.
        """
        with self._lock:
            taken, self._counts = self._counts, Counter()
        rows: dict[tuple[str, str], dict[str, int]] = {}
        for (owner, day, name), number in taken.items():
            rows.setdefault((owner, day), {})[name] = number
        if not rows:
            return

        def write(connection: Connection) -> None:
            for (owner, day), counts in sorted(rows.items()):  # one order of locks for every server
                if not is_forgotten(connection, owner):
                    add(connection, owner, day, **counts)

        try:
            database.write(write)
        except BaseException:
            with self._lock:
                self._counts.update(taken)
            raise


def is_forgotten(connection: Connection, owner: str) -> bool:
    """Whether the last thing that was done for an owner was to forget them."""
    newest = select(audit.c.action).where(audit.c.owner == owner).order_by(audit.c.id.desc()).limit(1)
    return connection.execute(newest).scalar() == "forget"
