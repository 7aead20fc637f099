"""The queue of jobs: fair between owners, nothing lost, nothing done twice; on SQLite and on PostgreSQL."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select

from foreword.errors import StorageLimitExceeded
from foreword.serving.errors import Refused
from foreword.serving.jobs import queue
from foreword.serving.jobs.queue import Job
from foreword.store import PrefixStore
from foreword.store.access import Caller
from foreword.store.quota import JOB_BYTES
from foreword.store.schema import job as table
from foreword.store.schema import usage

BLANK = Job(
    id="", owner="", created="", state="queued", model="m", name="n", training_file="f", validation_file=None,
    settings={"seed": 0}, alike="a", asked={"hyperparameters": {}, "metadata": None},
)  # fmt: skip


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest) -> Iterator[PrefixStore]:
    with request.getfixturevalue(f"{request.param}_place").open() as opened:
        yield opened


class Jobs:
    def __init__(self, store: PrefixStore) -> None:
        self.catalogue = store.catalogue
        self.number = 0

    def add(self, owner: str, **changes: Any) -> str:
        self.number += 1
        identifier = f"{owner}-{self.number}"
        created = f"2026-01-01T00:00:{self.number:02}.000000+00:00"
        record = dataclasses.replace(BLANK, id=identifier, owner=owner, created=created, **changes)
        queue.add(self.catalogue, Caller(owner, "owner"), record, limit=None)
        return identifier

    def take(self, worker: str = "w", most: int = 8) -> list[str]:
        return [job.id for job in queue.claim(self.catalogue, worker, most)]

    def succeed(self, identifier: str, worker: str = "w", result: str = "x@1") -> None:
        self.catalogue.write(lambda c: queue.succeed(c, worker, identifier, result, queue.Used(2, 5)))

    def state(self, identifier: str) -> str:
        return queue.find(self.catalogue, identifier.split("-")[0], identifier).state

    def events(self, identifier: str) -> list[str]:
        return [e["message"] for e in queue.events(self.catalogue, identifier, 100, None)[0]][::-1]


@pytest.fixture
def jobs(store: PrefixStore) -> Jobs:
    return Jobs(store)


def test_the_owner_who_waited_longest_comes_first(jobs: Jobs) -> None:
    for _ in range(3):
        jobs.add("alice")
    jobs.add("bob")
    jobs.add("carol")
    order = []
    while taken := jobs.take(most=1):
        order += taken
        jobs.succeed(taken[0])
    assert order == ["alice-1", "bob-4", "carol-5", "alice-2", "alice-3"]
    jobs.add("alice")
    jobs.add("bob")
    assert jobs.take(most=1) == ["bob-7"]


def test_jobs_that_one_run_can_train_come_along_one_of_each_owner_first(jobs: Jobs) -> None:
    for owner in ("alice", "alice", "bob", "carol"):
        jobs.add(owner)
    jobs.add("dora", alike="other")
    assert jobs.take(most=3) == ["alice-1", "bob-3", "carol-4"]
    assert jobs.take("v") == ["dora-5"]
    assert jobs.take("v") == ["alice-2"]
    assert jobs.take("v") == []


def test_no_job_is_taken_twice(jobs: Jobs) -> None:
    added = {jobs.add(f"o{n % 5}") for n in range(40)}
    taken: list[str] = []

    def work(name: str) -> None:
        while found := jobs.take(name, most=2):
            taken.extend(found)

    threads = [threading.Thread(target=work, args=(f"w{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 40
    assert set(taken) == added


def test_what_a_dead_worker_held_goes_on_alone_and_not_for_ever(jobs: Jobs) -> None:
    first, second = jobs.add("alice"), jobs.add("bob")
    assert jobs.take() == [first, second]
    for _ in range(2):
        assert queue.release(jobs.catalogue, "w", orderly=False) > 0
        assert len(jobs.take()) == 1
    assert queue.release(jobs.catalogue, "w", orderly=False) == 1
    states = {}
    for _ in range(6):
        taken = jobs.take()
        if not taken:
            break
        queue.release(jobs.catalogue, "w", orderly=False)
    states = {jobs.state(first), jobs.state(second)}
    assert states == {"failed"}
    assert jobs.events(first)[-1] == "training broke off 3 times without coming to an end"


def test_a_worker_that_stops_in_order_costs_no_attempt(jobs: Jobs) -> None:
    identifier = jobs.add("alice")
    for _ in range(10):
        assert jobs.take() == [identifier]
        queue.release(jobs.catalogue, "w", orderly=True)
    assert jobs.state(identifier) == "queued"


def test_a_job_that_advances_may_break_off_often(jobs: Jobs) -> None:
    identifier = jobs.add("alice")
    for _ in range(10):
        assert jobs.take() == [identifier]
        queue.advanced(jobs.catalogue, "w", identifier)
        queue.release(jobs.catalogue, "w", orderly=False)
    assert jobs.state(identifier) == "queued"


def test_a_silent_workers_jobs_are_collected_and_it_can_no_longer_end_them(jobs: Jobs) -> None:
    identifier = jobs.add("alice")
    jobs.take("old")
    assert queue.collect_lost(jobs.catalogue, 60) == 0
    jobs.catalogue.write(lambda c: c.execute(table.update().values(beat="2020-01-01T00:00:00")))
    assert queue.collect_lost(jobs.catalogue, 60) == 1
    assert jobs.take("new") == [identifier]
    assert queue.heartbeat(jobs.catalogue, "old", [identifier]) == []
    assert queue.heartbeat(jobs.catalogue, "new", [identifier]) == [identifier]
    with pytest.raises(queue.NotClaimed):
        jobs.succeed(identifier, "old")
    with pytest.raises(queue.NotClaimed):
        queue.fail(jobs.catalogue, "old", identifier, "c", "m")
    assert queue.release(jobs.catalogue, "old", orderly=False) == 0
    jobs.succeed(identifier, "new", "x@2")
    assert jobs.state(identifier) == "succeeded"


def test_cancelling_takes_a_job_from_its_worker(jobs: Jobs) -> None:
    identifier, waiting = jobs.add("alice"), jobs.add("alice")
    jobs.take(most=1)
    for each in (identifier, waiting):
        assert queue.cancel(jobs.catalogue, Caller("alice", "owner"), "alice", each).state == "cancelled"
    assert queue.heartbeat(jobs.catalogue, "w", [identifier]) == []
    with pytest.raises(queue.NotClaimed):
        jobs.succeed(identifier)
    assert jobs.take() == []
    with pytest.raises(Refused, match="ended already: cancelled"):
        queue.cancel(jobs.catalogue, Caller("alice", "owner"), "alice", identifier)
    with pytest.raises(Refused, match="no job"):
        queue.cancel(jobs.catalogue, Caller("bob", "owner"), "bob", identifier)


def test_a_limit_counts_unfinished_jobs_only(jobs: Jobs) -> None:
    def add(number: int) -> None:
        record = dataclasses.replace(BLANK, id=f"alice-{number}", owner="alice", created=f"{number}")
        queue.add(jobs.catalogue, Caller("alice", "owner"), record, limit=2)

    add(1)
    add(2)
    with pytest.raises(Refused, match="2 unfinished jobs"):
        add(3)
    taken = jobs.take(most=1)
    queue.fail(jobs.catalogue, "w", taken[0], "c", "m")
    add(3)


def test_within_an_owner_a_job_that_had_a_turn_comes_behind_the_others(jobs: Jobs) -> None:
    long, short = jobs.add("alice"), jobs.add("alice")
    assert jobs.take(most=1) == [long]
    queue.release(jobs.catalogue, "w", orderly=True)
    assert jobs.take(most=1) == [short]
    assert jobs.take(most=1) == [long]


def test_ended_jobs_and_events_of_an_owner_make_room_for_new_ones(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "KEPT_ENDED", 3)
    monkeypatch.setattr(queue, "KEPT_EVENTS", 4)
    bobs = jobs.add("bob")
    assert jobs.take(most=1) == [bobs]
    jobs.succeed(bobs)
    ended = [jobs.add("alice") for _ in range(5)]
    for identifier in ended:
        queue.cancel(jobs.catalogue, Caller("alice", "owner"), "alice", identifier)
    last = jobs.add("alice")
    kept, _ = queue.listed(jobs.catalogue, "alice", 100, None)
    assert [job.id for job in kept] == [last, *ended[:-3:-1]]
    assert jobs.state(bobs) == "succeeded"
    for number in range(9):
        queue.note(jobs.catalogue, last, "info", f"event {number}")
    assert jobs.events(last) == [f"event {number}" for number in range(5, 9)]
    assert jobs.events(bobs) == ["the job waits for its turn", "training begins", "the job is done: x@1"]


def test_messages_are_cut_and_made_such_that_every_database_and_answer_holds_them(jobs: Jobs) -> None:
    identifier = jobs.add("alice")
    jobs.take()
    queue.note(jobs.catalogue, identifier, "info", "a\0b\ud800c")
    assert jobs.events(identifier)[-1] == "a\ufffdb?c"
    queue.fail(jobs.catalogue, "w", identifier, "BadExamples", "\0" + "x" * 9999)
    error = queue.find(jobs.catalogue, "alice", identifier).error
    assert error is not None
    assert error["message"] == "\ufffd" + "x" * (queue.LONGEST_MESSAGE - 1) + "…"


def test_a_note_is_made_once_where_asked(jobs: Jobs) -> None:
    identifier = jobs.add("alice")
    for _ in range(2):
        queue.note(jobs.catalogue, identifier, "info", "2 examples were cut", once=True)
        queue.note(jobs.catalogue, identifier, "info", "again")
    assert jobs.events(identifier)[1:] == ["2 examples were cut", "again", "again"]
    assert queue.noted_step(jobs.catalogue, identifier) == -1
    queue.note(jobs.catalogue, identifier, "info", "step", {"step": 7})
    assert queue.noted_step(jobs.catalogue, identifier) == 7


def test_what_was_trained_is_added_to_the_owners_usage_when_a_job_ends(jobs: Jobs) -> None:
    done, failed = jobs.add("alice"), jobs.add("alice")
    jobs.take()
    jobs.succeed(done)
    queue.fail(jobs.catalogue, "w", failed, "TrainingDiverged", "m", queue.Used(3, 70))
    rows = jobs.catalogue.rows(select(usage.c.owner, usage.c.training_steps, usage.c.trained_tokens))
    assert [tuple(row) for row in rows] == [("alice", 5, 75)]
    assert queue.trained_tokens(jobs.catalogue) == 75


def test_what_a_cancelled_job_and_one_that_broke_off_used_is_counted_too(jobs: Jobs) -> None:
    cancelled, broken = jobs.add("alice"), jobs.add("bob")
    for attempt in range(queue.MOST_ATTEMPTS):
        claimed = [*jobs.take(), *jobs.take()]
        used = {cancelled: queue.Used(7, 90), broken: queue.Used(attempt, 10 * attempt)}
        queue.heartbeat(jobs.catalogue, "w", claimed, used)
        if attempt == 0:
            queue.cancel(jobs.catalogue, Caller("alice", "owner"), "alice", cancelled)
        queue.release(jobs.catalogue, "w", orderly=False)
    assert [jobs.state(each) for each in (cancelled, broken)] == ["cancelled", "failed"]
    found = [queue.find(jobs.catalogue, each.split("-")[0], each) for each in (cancelled, broken)]
    assert [job.trained_tokens for job in found] == [90, 20]
    rows = jobs.catalogue.rows(select(usage.c.owner, usage.c.training_steps, usage.c.trained_tokens))
    assert sorted(tuple(row) for row in rows) == [("alice", 7, 90), ("bob", 2, 20)]


def test_a_job_at_which_a_run_broke_off_pays_alone_and_waits_before_it_is_tried_again(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = jobs.add("alice"), jobs.add("bob")
    assert jobs.take() == [bad, good]
    reason = "its folder can't be written"
    assert queue.release(jobs.catalogue, "w", orderly=True, at_fault=bad, reason=reason) == 1
    assert [queue.find(jobs.catalogue, each.split("-")[0], each).attempts for each in (bad, good)] == [1, 0]
    assert jobs.take() == [good]
    jobs.succeed(good)
    assert not queue.waits(jobs.catalogue)
    assert jobs.take() == []
    for after_first, after_second in ((0.0, 1000.0), (1000.0, 0.0)):
        monkeypatch.setattr(queue, "PAUSES", (after_first, after_second))
        assert queue.waits(jobs.catalogue)
        assert jobs.take() == [bad]
        queue.release(jobs.catalogue, "w", orderly=True, at_fault=bad, reason=reason)
        assert not queue.waits(jobs.catalogue)
    assert jobs.state(bad) == "failed"
    told = jobs.events(bad)
    assert f"training broke off: {reason}; it goes on from the last checkpoint" in told
    assert told[-1] == f"training broke off 3 times without coming to an end: {reason}"


def test_a_job_counts_among_the_bytes_that_its_owner_stores(jobs: Jobs) -> None:
    record = dataclasses.replace(BLANK, id="alice-1", owner="alice", created="1")
    with pytest.raises(StorageLimitExceeded):
        queue.add(jobs.catalogue, Caller("alice", "owner"), record, limit=None, stored_bytes=JOB_BYTES - 1)
    queue.add(jobs.catalogue, Caller("alice", "owner"), record, limit=None, stored_bytes=JOB_BYTES)
    again = dataclasses.replace(record, id="alice-2")
    with pytest.raises(StorageLimitExceeded):
        queue.add(jobs.catalogue, Caller("alice", "owner"), again, limit=None, stored_bytes=JOB_BYTES)
