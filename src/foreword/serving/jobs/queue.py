"""The queue of training jobs, a table of the store's database that any number of workers share.

A worker that claims a job says from time to time that it is alive (a heartbeat). A job whose worker has been
silent for too long, or was seen to die, goes back into the queue and is resumed from its checkpoint. Every
change of a claimed job names its worker, so that one who was given up can't write over its successor.
However a job ends, `_end` ends it, and counts for its owner what it used.

What an owner can put here is bounded: unfinished jobs by a limit, ended ones by `KEPT_ENDED`, the events of a
job by `KEPT_EVENTS`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from sqlalchemy import ColumnElement, Connection, Select, and_, func, or_, select, tuple_

from foreword.serving.errors import Refused, shown
from foreword.serving.rate_limits import too_many
from foreword.store import access, quota, usage
from foreword.store.access import Caller
from foreword.store.database import Database
from foreword.store.schema import blob_owner, job, job_checkpoint, job_event, now
from foreword.store.schema import usage as usage_table

P = ParamSpec("P")
T = TypeVar("T")

LIVE = ("queued", "running", "paused")
"""States of a job that has not ended."""
MOST_ATTEMPTS = 3
"""Workers that may die over a job, or runs that may break off at its files, before it is given up."""
PAUSES = (10.0, 60.0)
"""Seconds that a job waits after the first and the second run that broke off at its own files."""
KEPT_ENDED = 200
"""Ended jobs of an owner that are kept; the oldest make room for new ones. Their prefixes stay."""
KEPT_EVENTS = 500
"""Events of a job that are kept, the newest."""
LONGEST_MESSAGE = 2000
"""Characters of an event or an error; a template's own words may quote a whole example."""
_CLAIMING = 0x666F7265 + 1
"""Key of the PostgreSQL advisory lock under which one worker claims jobs at a time."""


@dataclass(frozen=True)
class Job:
    """One training that a server does for an owner; a row of `foreword.store.schema.job`."""

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
    used_steps: int = 0
    used_tokens: int = 0
    worker: str | None = None
    beat: str | None = None
    started: str | None = None
    finished: str | None = None
    result: str | None = None
    trained_tokens: int | None = None
    error: Mapping[str, Any] | None = None


class Used(NamedTuple):
    """What a job has been trained so far; steps that were done again after a break count once."""

    steps: int
    tokens: int


class NotClaimed(Exception):
    """A job that is no longer this worker's: cancelled, forgotten, or given to another worker."""


def transaction(
    work: Callable[Concatenate[Connection, P], T],
) -> Callable[Concatenate[Database, P], T]:
    """Let a function of a connection take a database, and happen wholly or not at all."""

    @functools.wraps(work)
    def whole(database: Database, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return database.write(lambda connection: work(connection, *args, **kwargs))

    return whole


def page(database: Database, kind: Callable[..., T], query: Select[Any], limit: int) -> tuple[list[T], bool]:
    """A record of `kind` for each of the first rows of a query, and whether there are more."""
    rows = database.rows(query.limit(limit + 1))
    return [kind(**row._mapping) for row in rows[:limit]], len(rows) > limit


def _jobs(connection: Connection, query: Select[Any]) -> list[Job]:
    return [Job(**row._mapping) for row in connection.execute(query)]


def _add_event(
    connection: Connection, identifier: str, level: str, message: str, data: Mapping[str, Any] | None = None
) -> None:
    row = {"job": identifier, "at": now(), "level": level, "message": _writable(message), "data": data}
    connection.execute(job_event.insert().values(row))
    mine = job_event.c.job == identifier
    kept = select(job_event.c.id).where(mine).order_by(job_event.c.id.desc()).limit(1).offset(KEPT_EVENTS - 1)
    connection.execute(job_event.delete().where(mine, job_event.c.id < kept.scalar_subquery()))


def _writable(message: str) -> str:
    """A message that any database and any answer can hold, whatever of an example it quotes."""
    cut = message if len(message) <= LONGEST_MESSAGE else message[:LONGEST_MESSAGE] + "…"
    return cut.replace("\0", "\ufffd").encode(errors="replace").decode()


@transaction
def add(
    connection: Connection,
    caller: Caller,
    record: Job,
    *,
    limit: int | None,
    stored_bytes: int | None = None,
) -> None:
    """Put a job at the end of its owner's queue; the oldest of their ended jobs make room for it.

    Args:
        limit: unfinished jobs that the owner may have.
        stored_bytes: bytes that the owner may store; a job's rows count.

    Raises:
        Refused: 429, as many unfinished jobs as an owner may have.
        StorageLimitExceeded: the owner stores too much already.
        UnknownKey: the caller's key went meanwhile.
    """
    access.check_key(connection, caller)
    quota.hold(connection, record.owner)
    ended = select(job.c.id).where(job.c.owner == record.owner, job.c.finished.is_not(None))
    oldest = ended.order_by(job.c.created.desc(), job.c.id.desc()).offset(KEPT_ENDED - 1)
    connection.execute(job.delete().where(job.c.id.in_(oldest)))
    unfinished = select(func.count()).where(job.c.owner == record.owner, job.c.state.in_(LIVE))
    if limit is not None and connection.execute(unfinished).scalar_one() >= limit:
        raise too_many(f"{limit} unfinished jobs", 60, "jobs")
    quota.check(connection, record.owner, quota.JOB_BYTES, stored_bytes)
    connection.execute(job.insert().values(**vars(record)))
    _add_event(connection, record.id, "info", "the job waits for its turn")
    access.note(connection, caller, "create job", record.owner, f"{record.id} {record.owner}/{record.name}")


def find(database: Database, owner: str, identifier: str) -> Job:
    """A job of an owner. Raises Refused: 404, absent or somebody else's."""
    rows = database.rows(select(job).where(job.c.id == identifier, job.c.owner == owner))
    if not rows:
        raise _unknown(identifier)
    return Job(**rows[0]._mapping)


def listed(database: Database, owner: str, limit: int, after: str | None) -> tuple[list[Job], bool]:
    """A page of an owner's jobs, newest first, and whether there are more. Raises as `find`."""
    query = select(job).where(job.c.owner == owner).order_by(job.c.created.desc(), job.c.id.desc())
    if after is not None:
        last = find(database, owner, after)
        query = query.where(tuple_(job.c.created, job.c.id) < tuple_(last.created, last.id))
    return page(database, Job, query, limit)


def events(
    database: Database, identifier: str, limit: int, after: int | None
) -> tuple[list[dict[str, Any]], bool]:
    """A page of a job's events, newest first, and whether there are more."""
    query = select(job_event).where(job_event.c.job == identifier).order_by(job_event.c.id.desc())
    if after is not None:
        query = query.where(job_event.c.id < after)
    return page(database, dict, query, limit)


@transaction
def cancel(connection: Connection, caller: Caller, owner: str, identifier: str) -> Job:
    """Stop a job; one in training is let go by its worker after the step under way.

    Raises:
        Refused: 404 as `find`; 400 for a job that has ended.
    """
    mine, _ = _unfinished(connection, owner, identifier)
    _end(connection, mine, "cancelled", "info", "the job was cancelled")
    access.note(connection, caller, "cancel job", owner, identifier)
    return _jobs(connection, select(job).where(mine))[0]


@transaction
def pause(connection: Connection, caller: Caller, owner: str, identifier: str) -> Job:
    """Let a job wait until `resume`; one in training leaves its run after the step under way (`leave`).

    Raises:
        Refused: 404 as `find`; 400 for a job that has ended or is paused.
    """
    mine, found = _unfinished(connection, owner, identifier)
    if found.state == "paused":
        raise Refused(400, "the job is paused already; resume it, or cancel it", code="job_paused")
    connection.execute(job.update().where(mine).values(state="paused"))
    in_training = found.state == "running"
    message = "the job is to pause after the step under way" if in_training else "the job is paused"
    _add_event(connection, identifier, "info", message)
    access.note(connection, caller, "pause job", owner, identifier)
    return _jobs(connection, select(job).where(mine))[0]


@transaction
def resume(connection: Connection, caller: Caller, owner: str, identifier: str) -> Job:
    """Put a paused job back into its owner's queue; its training goes on where it was.

    Raises:
        Refused: 404 as `find`; 400 for a job that is not paused.
    """
    mine, found = _unfinished(connection, owner, identifier)
    if found.state != "paused":
        raise Refused(400, f"the job is not paused: {found.state}", code="job_not_paused")
    # Its worker may not have let go of it yet: it keeps the job, or puts it back itself.
    values = {"state": "running"} if found.worker is not None else {"state": "queued", "beat": None}
    connection.execute(job.update().where(mine).values(values))
    _add_event(connection, identifier, "info", "the job is resumed")
    access.note(connection, caller, "resume job", owner, identifier)
    return _jobs(connection, select(job).where(mine))[0]


def paused(database: Database, worker: str) -> set[str]:
    """Jobs that were paused and are still in the hands of `worker`, which has to let them go."""
    mine = and_(job.c.worker == worker, job.c.state == "paused")
    return {row.id for row in database.rows(select(job.c.id).where(mine))}


@transaction
def leave(connection: Connection, worker: str, identifier: str, step: int, used: Used) -> None:
    """A paused job has left the run of `worker`, with a checkpoint of `step`.

    One that was resumed in the meantime goes back into the queue; one that is no longer the worker's is
    left as it is.
    """
    here = and_(job.c.id == identifier, job.c.worker == worker)
    connection.execute(job.update().where(here).values(used_steps=used.steps, used_tokens=used.tokens))
    values = {"worker": None, "beat": None, "attempts": job.c.attempts - 1}
    gone = connection.execute(job.update().where(here, job.c.state == "paused").values(values))
    if gone.rowcount:
        message = f"the job is paused at step {step}; its checkpoint is kept"
        _add_event(connection, identifier, "info", message)
    else:
        _put_back(connection, here, orderly=True)


def _unfinished(connection: Connection, owner: str, identifier: str) -> tuple[ColumnElement[bool], Job]:
    """A job that has not ended, held until the transaction ends, and the condition that names it.

    Raises:
        Refused: 404 as `find`; 400 for a job that has ended.
    """
    mine = and_(job.c.id == identifier, job.c.owner == owner)
    jobs = _jobs(connection, select(job).where(mine).with_for_update())
    if not jobs:
        raise _unknown(identifier)
    if jobs[0].state not in LIVE:
        raise Refused(400, f"the job has ended already: {jobs[0].state}", code="job_ended")
    return mine, jobs[0]


def _unknown(identifier: str) -> Refused:
    return Refused(404, f"there is no job {shown(identifier)} of yours", code="job_not_found")


def counted(database: Database) -> dict[str, float]:
    """How many jobs there are in each state."""
    rows = database.rows(select(job.c.state, func.count().label("number")).group_by(job.c.state))
    return {row.state: float(row.number) for row in rows}


def trained_tokens(database: Database) -> float:
    """Tokens that all ended jobs have been trained on, those too that are no longer kept."""
    return float(database.rows(select(func.sum(usage_table.c.trained_tokens).label("sum")))[0].sum or 0)


def waits(database: Database) -> bool:
    """Whether there is a job to claim."""
    return bool(database.rows(select(job.c.id).where(_waiting()).limit(1)))


def _waiting() -> ColumnElement[bool]:
    """Condition: a job that waits for a worker, and not for the end of a pause."""
    over = [and_(job.c.attempts == n, job.c.beat < now(pause)) for n, pause in enumerate(PAUSES, 1)]
    none = or_(job.c.beat.is_(None), job.c.attempts.not_in(range(1, len(PAUSES) + 1)))
    return and_(job.c.state == "queued", or_(none, *over))


def live(database: Database) -> set[str]:
    """Ids of all unfinished jobs."""
    return {row.id for row in database.rows(select(job.c.id).where(job.c.state.in_(LIVE)))}


@transaction
def claim(connection: Connection, worker: str, most: int) -> list[Job]:
    """Jobs that can be trained in one run, now `worker`'s; none when nothing waits.

    The owner who has waited longest since a job of theirs last came to its turn chooses the run; others'
    jobs with the same settings come along, one of each owner before a second of any. A job over which a
    worker has died is claimed alone, so that it does not take others with it again.
    """
    # When an owner last had a turn: jobs that have ended count too, or whoever has just been served would
    # come first again. Within an owner, a job that has had a turn comes behind those that have not. The
    # rank is only among those that wait, so that each owner has one of rank 1, one of rank 2, ...
    last_turn = func.max(job.c.started).over(partition_by=job.c.owner)
    order = (func.coalesce(job.c.started, ""), job.c.created, job.c.id)
    rank = func.row_number().over(partition_by=job.c.owner, order_by=order)
    turns = select(job.c.id, last_turn.label("turn")).subquery()
    free = select(job.c.id, rank.label("rank")).where(_waiting()).subquery()
    query = (
        select(job)
        .join(free, free.c.id == job.c.id)
        .join(turns, turns.c.id == job.c.id)
        .order_by(free.c.rank, func.coalesce(turns.c.turn, ""), job.c.created, job.c.id)
    )
    # Two workers that read at once would choose the same jobs. SQLite has one writer; PostgreSQL lets both
    # read, and a lock on rows would come after the choice.
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_CLAIMING})")
    queued = _jobs(connection, query)
    chosen = queued[:1]
    if queued and queued[0].attempts == 0:
        chosen = [one for one in queued if one.alike == queued[0].alike and one.attempts == 0][:most]
    for one in chosen:
        moment = now()
        values = {"worker": worker, "beat": moment, "started": moment, "attempts": one.attempts + 1}
        connection.execute(job.update().where(job.c.id == one.id).values(state="running", **values))
        _add_event(connection, one.id, "info", "training goes on" if one.started else "training begins")
    return chosen


def heartbeat(
    database: Database, worker: str, claimed: Sequence[str], used: Mapping[str, Used] | None = None
) -> list[str]:
    """Say that `worker` is alive, and what its jobs have used; which of them are still its own."""

    def work(connection: Connection) -> list[str]:
        mine = and_(job.c.id.in_(claimed), _held_by(worker))
        connection.execute(job.update().where(mine).values(beat=now()))
        for identifier, (steps, tokens) in (used or {}).items():
            values = {"used_steps": steps, "used_tokens": tokens}
            connection.execute(job.update().where(mine, job.c.id == identifier).values(values))
        return list(connection.execute(select(job.c.id).where(mine)).scalars())

    return database.write(work, durable=False)  # one that a power cut takes is said again


def note(
    database: Database,
    identifier: str,
    level: str,
    message: str,
    data: Mapping[str, Any] | None = None,
    *,
    once: bool = False,
) -> None:
    """Add an event to a job that is still there; with `once`, unless it has one that says the same."""

    def work(connection: Connection) -> None:
        if connection.execute(select(job.c.id).where(job.c.id == identifier)).first() is None:
            return
        same = and_(job_event.c.job == identifier, job_event.c.message == _writable(message))
        if not once or connection.execute(select(job_event.c.id).where(same).limit(1)).first() is None:
            _add_event(connection, identifier, level, message, data)

    database.write(work, durable=False)


def noted_step(database: Database, identifier: str) -> int:
    """The last step that a job's events tell of; -1 for none."""
    rows = database.rows(select(job_event.c.data).where(job_event.c.job == identifier))
    return max((row.data["step"] for row in rows if row.data and "step" in row.data), default=-1)


def metrics_at(database: Database, identifier: str, step: int) -> Mapping[str, Any]:
    """What the newest of a job's events about a step measured; empty for none."""
    mine = select(job_event.c.data).where(job_event.c.job == identifier).order_by(job_event.c.id.desc())
    found = (row.data for row in database.rows(mine) if row.data and row.data.get("step") == step)
    return next(found, {})


def check_claimed(connection: Connection, worker: str, identifier: str) -> None:
    """Hold a job until the transaction ends. Raises NotClaimed: it is not, or no longer, `worker`'s.

    One that was paused is the worker's until it has let go of it: its last checkpoint counts.
    """
    mine = and_(job.c.id == identifier, _held_by(worker))
    if connection.execute(select(job.c.id).where(mine).with_for_update()).first() is None:
        raise NotClaimed(identifier)


def drop_checkpoint(connection: Connection, identifier: str) -> str | None:
    """Let go of a job's checkpoint in the store; the digest of its file, which nobody may need any more."""
    row = job_checkpoint.delete().where(job_checkpoint.c.job == identifier)
    gone = connection.execute(row.returning(job_checkpoint.c.owner, job_checkpoint.c.digest)).first()
    if gone is None:
        return None
    # It counts for its owner no longer, even if garbage collection has to remove it.
    counted = and_(blob_owner.c.owner == gone.owner, blob_owner.c.digest == gone.digest)
    connection.execute(blob_owner.delete().where(counted))
    return str(gone.digest)


@transaction
def advanced(connection: Connection, worker: str, identifier: str) -> None:
    """The job has come a good way under this worker: what befell it before no longer counts."""
    mine = and_(job.c.id == identifier, job.c.worker == worker)
    connection.execute(job.update().where(mine).values(attempts=1))


def succeed(connection: Connection, worker: str, identifier: str, result: str, used: Used) -> str | None:
    """The prefix is stored as `result`, in the same transaction.

    Returns:
        Digest of the job's checkpoint in the store, if it had one: nobody needs it any more.

    Raises:
        NotClaimed: the job is no longer this worker's; the transaction must be undone.
    """
    mine = _claimed_by(worker, identifier)
    _end(connection, mine, "succeeded", "info", f"the job is done: {result}", used, result=result)
    return drop_checkpoint(connection, identifier)


@transaction
def fail(
    connection: Connection, worker: str, identifier: str, code: str, message: str, used: Used | None = None
) -> str | None:
    """The job can't be done. Returns and raises as `succeed`."""
    mine = _claimed_by(worker, identifier)
    _end(connection, mine, "failed", "error", message, used, error=_error(code, message))
    return drop_checkpoint(connection, identifier)


def _held_by(worker: str) -> ColumnElement[bool]:
    return and_(job.c.worker == worker, job.c.state.in_(("running", "paused")))


def _claimed_by(worker: str, identifier: str) -> ColumnElement[bool]:
    return and_(job.c.id == identifier, job.c.worker == worker, job.c.state == "running")


def _error(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "message": _writable(message), "param": None}


def _end(
    connection: Connection,
    which: ColumnElement[bool],
    state: str,
    level: str,
    message: str,
    used: Used | None = None,
    **values: Any,
) -> None:
    """End one job, however it ends, and count what it used for its owner: the one way out of the queue.

    Args:
        used: as its worker knows it; None: as of that worker's last heartbeat.

    Raises:
        NotClaimed: there is no such job (any more).
    """
    if used is not None:
        values |= {"used_steps": used.steps, "used_tokens": used.tokens}
    tokens = func.nullif(job.c.used_tokens, 0) if used is None else used.tokens or None
    # Without its worker's name, nothing that the worker still says of the job counts.
    values |= {"state": state, "worker": None, "finished": now(), "trained_tokens": tokens}
    # One statement asks and writes: between two, the lease could end and another worker claim the job.
    facts = (job.c.id, job.c.owner, job.c.used_steps, job.c.used_tokens)
    row = connection.execute(job.update().where(which).values(values).returning(*facts)).first()
    if row is None:
        raise NotClaimed
    _add_event(connection, row.id, level, message)
    if row.used_steps:
        usage.add(connection, row.owner, training_steps=row.used_steps, trained_tokens=row.used_tokens)


@transaction
def release(
    connection: Connection, worker: str, *, orderly: bool, at_fault: str | None = None, reason: str = ""
) -> int:
    """Put all jobs of a worker back into the queue; how many they were.

    Args:
        orderly: the worker stopped at its own or somebody's will; else it died, and a job over which that
            has happened too often fails.
        at_fault: the job at which the run broke off: for it, it is as if the worker had died, and it pauses.
        reason: why it broke off there, for the job's owner.
    """
    if at_fault is not None:
        _put_back(connection, _claimed_by(worker, at_fault), orderly=False, pause=True, reason=reason)
    return _put_back(connection, job.c.worker == worker, orderly=orderly)


@transaction
def collect_lost(connection: Connection, lease: float) -> int:
    """Put the jobs of workers back that have been silent for too long; how many they were."""
    return _put_back(connection, job.c.beat < now(lease), orderly=False)


def _put_back(
    connection: Connection,
    which: ColumnElement[bool],
    *,
    orderly: bool,
    pause: bool = False,
    reason: str = "",
) -> int:
    # A paused job that did not leave its run by itself: a document's, or one whose worker died.
    freed: dict[str, Any] = {"worker": None, "beat": None, "attempts": job.c.attempts - int(orderly)}
    left = job.update().where(job.c.state == "paused", which).values(freed).returning(job.c.id)
    for identifier in connection.execute(left).scalars().all():
        _add_event(connection, identifier, "info", "the job is paused; its last checkpoint is kept")
    jobs = _jobs(connection, select(job).where(job.c.state == "running", which).with_for_update())
    because = f": {reason}" if reason else ""
    for one in jobs:
        here = job.c.id == one.id
        if not orderly and one.attempts >= MOST_ATTEMPTS:
            message = f"training broke off {one.attempts} times without coming to an end{because}"
            _end(connection, here, "failed", "error", message, error=_error("broke_off", message))
            continue
        # Of a job that waits, `beat` is when its pause began; see `_waiting`.
        values: dict[str, Any] = {"state": "queued", "worker": None, "beat": now() if pause else None}
        if orderly:
            values["attempts"] = one.attempts - 1
            level, message = "info", "training makes room; it goes on from its checkpoint"
        else:
            level, message = "warn", f"training broke off{because}; it goes on from the last checkpoint"
        connection.execute(job.update().where(here).values(values))
        _add_event(connection, one.id, level, message)
    return len(jobs)
