"""Job queue: an owner's training jobs, as the owner sees them; workers take them in `job_taking.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, and_, func, select, tuple_

from foreword.serving.errors import Refused, shown
from foreword.serving.jobs.queue import LIVE, Job, add_event
from foreword.serving.rate_limits import too_many
from foreword.store import audit
from foreword.store.access import Caller
from foreword.store.database import Catalogue
from foreword.store.tables import job, job_event, now


def add(catalogue: Catalogue, caller: Caller, record: Job, *, limit: int | None) -> None:
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
        audit.note(
            connection, caller, "create job", record.owner, f"{record.id} {record.owner}/{record.name}"
        )

    catalogue.write(work)


def find(catalogue: Catalogue, owner: str, identifier: str) -> Job:
    """A job of an owner.

    Raises:
        Refused: 404, absent or somebody else's.
    """
    rows = catalogue.rows(select(job).where(job.c.id == identifier, job.c.owner == owner))
    if not rows:
        raise _unknown(identifier)
    return Job(**rows[0]._mapping)


def listed(catalogue: Catalogue, owner: str, limit: int, after: str | None) -> tuple[list[Job], bool]:
    """A page of an owner's jobs, newest first, and whether there are more. Raises as `find`."""
    query = select(job).where(job.c.owner == owner)
    if after is not None:
        there = find(catalogue, owner, after)
        query = query.where(tuple_(job.c.created, job.c.id) < tuple_(there.created, there.id))
    rows = catalogue.rows(query.order_by(job.c.created.desc(), job.c.id.desc()).limit(limit + 1))
    return [Job(**row._mapping) for row in rows[:limit]], len(rows) > limit


def events(
    catalogue: Catalogue, identifier: str, limit: int, after: int | None
) -> tuple[list[Mapping[str, Any]], bool]:
    """A page of a job's events, newest first, and whether there are more."""
    query = select(job_event).where(job_event.c.job == identifier)
    if after is not None:
        query = query.where(job_event.c.id < after)
    rows = catalogue.rows(query.order_by(job_event.c.id.desc()).limit(limit + 1))
    return [dict(row._mapping) for row in rows[:limit]], len(rows) > limit


def cancel(catalogue: Catalogue, caller: Caller, owner: str, identifier: str) -> Job:
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
        audit.note(connection, caller, "cancel job", owner, identifier)

    catalogue.write(work)
    return find(catalogue, owner, identifier)


def counted(catalogue: Catalogue) -> dict[str, float]:
    """How many jobs there are in each state."""
    rows = catalogue.rows(select(job.c.state, func.count().label("number")).group_by(job.c.state))
    return {row.state: float(row.number) for row in rows}


def trained_tokens(catalogue: Catalogue) -> float:
    """Tokens that all finished jobs have been trained on."""
    return float(catalogue.rows(select(func.sum(job.c.trained_tokens).label("sum")))[0].sum or 0)


def _unknown(identifier: str) -> Refused:
    return Refused(404, f"there is no job {shown(identifier)} of yours", code="job_not_found")
