"""Job taking: how any number of workers share the queue of training jobs.

A worker that takes a job says from time to time that it is alive; a job whose worker has been silent
for too long, or was seen to die, goes back into the queue and is continued from its checkpoint. Every
change of a taken job names its worker, so that one who was given up can't write over its successor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, and_, func, select

from foreword.serving.jobs.queue import LIVE, Job, add_event
from foreword.store.database import Catalogue
from foreword.store.tables import job, now

MOST_ATTEMPTS = 3
"""Workers that may die over a job before it is given up."""

_TAKING = 0x666F7265 + 1
"""Key of the PostgreSQL advisory lock under which one worker takes jobs at a time."""


def waits(catalogue: Catalogue) -> bool:
    """Whether there is a job to take."""
    return bool(catalogue.rows(select(job.c.id).where(job.c.state == "queued").limit(1)))


def live(catalogue: Catalogue) -> set[str]:
    """Ids of all unfinished jobs."""
    return {row.id for row in catalogue.rows(select(job.c.id).where(job.c.state.in_(LIVE)))}


def take(catalogue: Catalogue, worker: str, most: int) -> list[Job]:
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


def beat(catalogue: Catalogue, worker: str, taken: Sequence[str]) -> list[str]:
    """Say that `worker` is alive; which of its jobs are still its own."""

    def work(connection: Connection) -> list[str]:
        mine = and_(job.c.worker == worker, job.c.id.in_(taken), job.c.state == "running")
        connection.execute(job.update().where(mine).values(beat=now()))
        return list(connection.execute(select(job.c.id).where(mine)).scalars())

    return catalogue.write(work, durable=False)


def note(
    catalogue: Catalogue, identifier: str, level: str, message: str, data: Mapping[str, Any] | None = None
) -> None:
    """Add an event to a job that is still there."""

    def work(connection: Connection) -> None:
        if connection.execute(select(job.c.id).where(job.c.id == identifier)).first() is not None:
            add_event(connection, identifier, level, message, data)

    catalogue.write(work, durable=False)


def advanced(catalogue: Catalogue, worker: str, identifier: str) -> None:
    """The job has come a good way under this worker: what befell it before no longer counts."""
    mine = and_(job.c.id == identifier, job.c.worker == worker)
    catalogue.write(lambda connection: connection.execute(job.update().where(mine).values(attempts=1)))


def succeed(catalogue: Catalogue, worker: str, identifier: str, result: str, tokens: int) -> bool:
    """The prefix is stored as `result`; false when the job is no longer this worker's."""
    values = {"state": "succeeded", "result": result, "trained_tokens": tokens}
    return _end(catalogue, worker, identifier, values, "info", f"the job is done: {result}")


def fail(catalogue: Catalogue, worker: str, identifier: str, code: str, message: str) -> bool:
    """The job can't be done; false when it is no longer this worker's."""
    values = {"state": "failed", "error": {"code": code, "message": message, "param": None}}
    return _end(catalogue, worker, identifier, values, "error", message)


def give_back(catalogue: Catalogue, worker: str, *, orderly: bool) -> int:
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


def collect_lost(catalogue: Catalogue, lease: float) -> int:
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
    catalogue: Catalogue, worker: str, identifier: str, values: Mapping[str, Any], level: str, message: str
) -> bool:
    def work(connection: Connection) -> bool:
        mine = and_(job.c.id == identifier, job.c.worker == worker, job.c.state == "running")
        ended = connection.execute(job.update().where(mine).values(**values, worker=None, finished=now()))
        if ended.rowcount == 0:
            return False
        add_event(connection, identifier, level, message)
        return True

    return catalogue.write(work)
