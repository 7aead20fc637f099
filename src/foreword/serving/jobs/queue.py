"""Job: one training that a server does for an owner, as the catalogue keeps it.

Job queue: an owner's training jobs, as the owner sees them; workers take them in `job_taking.py`.

Job taking: how any number of workers share the queue of training jobs.

A worker that takes a job says from time to time that it is alive; a job whose worker has been silent
for too long, or was seen to die, goes back into the queue and is continued from its checkpoint. Every
change of a taken job names its worker, so that one who was given up can't write over its successor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, func, select, tuple_

from foreword.serving.errors import Refused, shown
from foreword.serving.rate_limits import too_many
from foreword.store import access
from foreword.store.access import Caller
from foreword.store.database import Database
from foreword.store.schema import job, job_event, now

LIVE = ("queued", "running")
"""States of a job that has not ended."""


@dataclass(frozen=True)
class Job:
    """A row of the table; see `foreword.store.schema.job`."""

    id: str
    owner: str
    created: str
    state: str
    model: str
    name: str
    training_file: str
    validation_file: str | None
    settings: Mapping[str, Any]
    alike: str
    asked: Mapping[str, Any]
    attempts: int = 0
    worker: str | None = None
    beat: str | None = None
    started: str | None = None
    finished: str | None = None
    result: str | None = None
    trained_tokens: int | None = None
    error: Mapping[str, Any] | None = None


def add_event(
    connection: Connection, identifier: str, level: str, message: str, data: Mapping[str, Any] | None = None
) -> None:
    """Add an event to the transaction under way."""
    row = {"job": identifier, "at": now(), "level": level, "message": message, "data": data}
    connection.execute(job_event.insert().values(row))


# -- Job queue: an owner's training jobs, as the owner sees them; workers take them in `job_taking.py`


def add(catalogue: Database, caller: Caller, record: Job, *, limit: int | None) -> None:
    """Put a job at the end of its owner's queue.

    Raises:
        Refused: 429, as many unfinished jobs as an owner may have.
    """

    def work(connection: Connection) -> None:
        unfinished = select(func.count()).where(job.c.owner == record.owner, job.c.state.in_(LIVE))
        if limit is not None and connection.execute(unfinished).scalar_one() >= limit:
            raise too_many(f"{limit} unfinished jobs", 60, "jobs")
        connection.execute(job.insert().values(**vars(record)))
        add_event(connection, record.id, "info", "the job waits for its turn")
        access.note(
            connection, caller, "create job", record.owner, f"{record.id} {record.owner}/{record.name}"
        )

    catalogue.write(work)


def find(catalogue: Database, owner: str, identifier: str) -> Job:
    """A job of an owner.

    Raises:
        Refused: 404, absent or somebody else's.
    """
    rows = catalogue.rows(select(job).where(job.c.id == identifier, job.c.owner == owner))
    if not rows:
        raise _unknown(identifier)
    return Job(**rows[0]._mapping)


def listed(catalogue: Database, owner: str, limit: int, after: str | None) -> tuple[list[Job], bool]:
    """A page of an owner's jobs, newest first, and whether there are more. Raises as `find`."""
    query = select(job).where(job.c.owner == owner)
    if after is not None:
        there = find(catalogue, owner, after)
        query = query.where(tuple_(job.c.created, job.c.id) < tuple_(there.created, there.id))
    rows = catalogue.rows(query.order_by(job.c.created.desc(), job.c.id.desc()).limit(limit + 1))
    return [Job(**row._mapping) for row in rows[:limit]], len(rows) > limit


def events(
    catalogue: Database, identifier: str, limit: int, after: int | None
) -> tuple[list[Mapping[str, Any]], bool]:
    """A page of a job's events, newest first, and whether there are more."""
    query = select(job_event).where(job_event.c.job == identifier)
    if after is not None:
        query = query.where(job_event.c.id < after)
    rows = catalogue.rows(query.order_by(job_event.c.id.desc()).limit(limit + 1))
    return [dict(row._mapping) for row in rows[:limit]], len(rows) > limit


def cancel(catalogue: Database, caller: Caller, owner: str, identifier: str) -> Job:
    """Stop a job; one in training is let go by its worker after the step under way.

    Raises:
        Refused: 404 as `find`; 400 for a job that has ended.
    """

    def work(connection: Connection) -> None:
        mine = and_(job.c.id == identifier, job.c.owner == owner)
        state = connection.execute(select(job.c.state).where(mine).with_for_update()).scalar()
        if state is None:
            raise _unknown(identifier)
        if state not in LIVE:
            raise Refused(400, f"the job has ended already: {state}", code="job_ended")
        ended = {"state": "cancelled", "worker": None, "finished": now()}
        connection.execute(job.update().where(mine).values(ended))
        add_event(connection, identifier, "info", "the job was cancelled")
        access.note(connection, caller, "cancel job", owner, identifier)

    catalogue.write(work)
    return find(catalogue, owner, identifier)


def counted(catalogue: Database) -> dict[str, float]:
    """How many jobs there are in each state."""
    rows = catalogue.rows(select(job.c.state, func.count().label("number")).group_by(job.c.state))
    return {row.state: float(row.number) for row in rows}


def trained_tokens(catalogue: Database) -> float:
    """Tokens that all finished jobs have been trained on."""
    return float(catalogue.rows(select(func.sum(job.c.trained_tokens).label("sum")))[0].sum or 0)


def _unknown(identifier: str) -> Refused:
    return Refused(404, f"there is no job {shown(identifier)} of yours", code="job_not_found")


# -- Job taking: how any number of workers share the queue of training jobs ------------------------


MOST_ATTEMPTS = 3
"""Workers that may die over a job before it is given up."""

_TAKING = 0x666F7265 + 1
"""Key of the PostgreSQL advisory lock under which one worker takes jobs at a time."""


def waits(catalogue: Database) -> bool:
    """Whether there is a job to take."""
    return bool(catalogue.rows(select(job.c.id).where(job.c.state == "queued").limit(1)))


def live(catalogue: Database) -> set[str]:
    """Ids of all unfinished jobs."""
    return {row.id for row in catalogue.rows(select(job.c.id).where(job.c.state.in_(LIVE)))}


def take(catalogue: Database, worker: str, most: int) -> list[Job]:
    """Jobs that can be trained in one run, taken for `worker`; none when nothing waits.

    The owner who has waited longest since a job of theirs last came to its turn chooses the run; others'
    jobs with the same settings come along, one of each owner before a second of any. A job over which a
    worker has died is taken alone, so that it does not take others with it again.
    """

    def work(connection: Connection) -> list[Job]:
        turn = func.max(job.c.started).over(partition_by=job.c.owner)
        # Within an owner, too: a job that has had a turn comes behind those that have not.
        had = func.coalesce(job.c.started, "")
        rank = func.row_number().over(partition_by=job.c.owner, order_by=(had, job.c.created, job.c.id))
        # The turn counts finished jobs, too; the rank is only of those that wait.
        turns = select(job.c.id, turn.label("turn")).subquery()
        free = select(job.c.id, rank.label("rank")).where(job.c.state == "queued").subquery()
        query = (
            select(job)
            .join(free, free.c.id == job.c.id)
            .join(turns, turns.c.id == job.c.id)
            .order_by(free.c.rank, func.coalesce(turns.c.turn, ""), job.c.created, job.c.id)
        )
        if connection.dialect.name == "postgresql":  # two workers at once: one waits for the other
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_TAKING})")
        found = [Job(**row._mapping) for row in connection.execute(query)]
        chosen = found[:1]
        if found and found[0].attempts == 0:
            chosen = [one for one in found if one.alike == found[0].alike and one.attempts == 0][:most]
        for taken in chosen:
            moment = now()
            values = {"worker": worker, "beat": moment, "started": moment, "attempts": taken.attempts + 1}
            connection.execute(job.update().where(job.c.id == taken.id).values(state="running", **values))
            add_event(
                connection, taken.id, "info", "training goes on" if taken.started else "training begins"
            )
        return chosen

    return catalogue.write(work)


def beat(catalogue: Database, worker: str, taken: Sequence[str]) -> list[str]:
    """Say that `worker` is alive; which of its jobs are still its own."""

    def work(connection: Connection) -> list[str]:
        mine = and_(job.c.worker == worker, job.c.id.in_(taken), job.c.state == "running")
        connection.execute(job.update().where(mine).values(beat=now()))
        return list(connection.execute(select(job.c.id).where(mine)).scalars())

    return catalogue.write(work, durable=False)


def note(
    catalogue: Database, identifier: str, level: str, message: str, data: Mapping[str, Any] | None = None
) -> None:
    """Add an event to a job that is still there."""

    def work(connection: Connection) -> None:
        if connection.execute(select(job.c.id).where(job.c.id == identifier)).first() is not None:
            add_event(connection, identifier, level, message, data)

    catalogue.write(work, durable=False)


def advanced(catalogue: Database, worker: str, identifier: str) -> None:
    """The job has come a good way under this worker: what befell it before no longer counts."""
    mine = and_(job.c.id == identifier, job.c.worker == worker)
    catalogue.write(lambda connection: connection.execute(job.update().where(mine).values(attempts=1)))


def succeed(catalogue: Database, worker: str, identifier: str, result: str, tokens: int) -> bool:
    """The prefix is stored as `result`; false when the job is no longer this worker's."""
    values = {"state": "succeeded", "result": result, "trained_tokens": tokens}
    return _end(catalogue, worker, identifier, values, "info", f"the job is done: {result}")


def fail(catalogue: Database, worker: str, identifier: str, code: str, message: str) -> bool:
    """The job can't be done; false when it is no longer this worker's."""
    values = {"state": "failed", "error": {"code": code, "message": message, "param": None}}
    return _end(catalogue, worker, identifier, values, "error", message)


def give_back(catalogue: Database, worker: str, *, orderly: bool) -> int:
    """Put all jobs of a worker back into the queue; how many they were.

    Args:
        orderly: the worker stopped at its own or somebody's will; else it died, and a job over which that
            has happened too often fails.
    """

    def work(connection: Connection) -> int:
        mine = select(job).where(job.c.worker == worker, job.c.state == "running").with_for_update()
        found = [Job(**row._mapping) for row in connection.execute(mine)]
        for taken in found:
            _put_back(connection, taken, orderly=orderly)
        return len(found)

    return catalogue.write(work)


def collect_lost(catalogue: Database, lease: float) -> int:
    """Put the jobs of workers back that have been silent for too long; how many they were."""

    def work(connection: Connection) -> int:
        lost = select(job).where(job.c.state == "running", job.c.beat < now(lease)).with_for_update()
        found = [Job(**row._mapping) for row in connection.execute(lost)]
        for taken in found:
            _put_back(connection, taken, orderly=False)
        return len(found)

    return catalogue.write(work)


def _put_back(connection: Connection, taken: Job, *, orderly: bool) -> None:
    here = job.update().where(job.c.id == taken.id)
    if orderly:
        connection.execute(here.values(state="queued", worker=None, attempts=taken.attempts - 1))
        add_event(connection, taken.id, "info", "training makes room; it goes on from its checkpoint")
    elif taken.attempts < MOST_ATTEMPTS:
        connection.execute(here.values(state="queued", worker=None))
        add_event(connection, taken.id, "warn", "training broke off; it goes on from the last checkpoint")
    else:
        message = f"training broke off {taken.attempts} times without coming to an end"
        error = {"code": "broke_off", "message": message, "param": None}
        connection.execute(here.values(state="failed", worker=None, finished=now(), error=error))
        add_event(connection, taken.id, "error", message)


def _end(
    catalogue: Database, worker: str, identifier: str, values: Mapping[str, Any], level: str, message: str
) -> bool:
    def work(connection: Connection) -> bool:
        mine = and_(job.c.id == identifier, job.c.worker == worker, job.c.state == "running")
        ended = connection.execute(job.update().where(mine).values(**values, worker=None, finished=now()))
        if ended.rowcount == 0:
            return False
        add_event(connection, identifier, level, message)
        return True

    return catalogue.write(work)
