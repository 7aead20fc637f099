"""Checkpoints of jobs in the store: on another machine a job goes on, ends once, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import json
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from foreword import BaseModel, Prefix, train
from foreword.errors import CannotWrite, StoreUnavailable
from foreword.serving.config import Configuration
from foreword.serving.jobs import checkpoints, queue, trainer, uploads
from foreword.serving.jobs.queue import Job
from foreword.serving.jobs.supervisor import UNAVAILABLE, Supervisor
from foreword.serving.jobs.worker import JobHeartbeat, TrainingRun
from foreword.store import PrefixStore
from foreword.store.access import ADMINISTRATOR, Caller
from foreword.store.schema import blob, blob_owner, job_checkpoint, upload, usage, version
from foreword.store.schema import job as job_table
from foreword.training.run_log import RunLog
from support.served_processes import jsonl
from support.stand_ins import random_examples
from support.stores import Place

EXAMPLES = random_examples(8)
SETTINGS = {"steps": 20, "length": 2, "batch_size": 4, "seed": 3}
CONFIGURATION = Configuration(isolated=True)


class Died(BaseException):
    """Stands for a machine that is no more."""


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(f"{request.param}_place")
    return found


@pytest.fixture
def store(sqlite_place: Place) -> Iterator[PrefixStore]:
    with sqlite_place.open() as opened:
        yield opened


def add_job(store: PrefixStore, base: BaseModel, owner: str, stored_bytes: int | None = None) -> str:
    caller = Caller(owner, "owner")
    file = uploads.add(store.database, caller, owner, "mine.jsonl", jsonl(EXAMPLES), limit=None)
    settings = {**SETTINGS, "template": base.template.to_json(), "start": None}
    record = Job(
        id=f"job-{owner}", owner=owner, created="2026-01-01T00:00:00.000000+00:00", state="queued", model="m",
        name="mine", training_file=file.id, validation_file=None, settings=settings, alike="a",
        asked={"hyperparameters": {}, "metadata": None, "stored_bytes": stored_bytes},
    )  # fmt: skip
    queue.add(store.database, caller, record, limit=None)
    return record.id


def work(
    store: PrefixStore, base: BaseModel, worker: str, run_class: type[TrainingRun] = TrainingRun
) -> None:
    jobs = queue.claim(store.database, worker, 8)
    heartbeat = JobHeartbeat(store.database, worker, [job.id for job in jobs], CONFIGURATION)
    try:
        run_class(CONFIGURATION, store, worker, heartbeat).train(base, jobs)
    except Died:
        queue.release(store.database, worker, orderly=False)


def dying_at(step: int) -> type[TrainingRun]:
    class Dying(TrainingRun):
        def _save(self, identifier: str, path: Path) -> None:
            super()._save(identifier, path)
            if path.name == f"step-{step:07d}.checkpoint":
                raise Died

    return Dying


def finishing_after(what: Callable[[], Any]) -> type[TrainingRun]:
    """With `what` in between the end of training and the put."""

    class Disturbed(TrainingRun):
        def _finish(self, identifier: str, prefix: Prefix) -> None:
            what()
            super()._finish(identifier, prefix)

    return Disturbed


def messages(store: PrefixStore, identifier: str) -> list[str]:
    return [event["message"] for event in queue.events(store.database, identifier, 100, None)[0]][::-1]


def left(store: PrefixStore) -> tuple[int, int]:
    """Checkpoints in the store, and files that no version names."""
    named = select(version.c.digest)
    unnamed = store.database.rows(select(blob.c.digest).where(blob.c.digest.not_in(named)))
    return len(store.database.rows(select(job_checkpoint.c.job))), len(unnamed)


def test_a_job_goes_on_on_another_machine_bit_for_bit_and_tells_of_each_step_once(
    place: Place, tiny_base: BaseModel, tmp_path: Path
) -> None:
    with place.open(checkpoints=tmp_path / "one") as one, place.open(checkpoints=tmp_path / "two") as two:
        identifier = add_job(one, tiny_base, "alice")
        work(one, tiny_base, "w1", dying_at(10))
        assert left(one) == (1, 1)
        work(two, tiny_base, "w2")
        told = messages(two, identifier)
        assert [m.split(":")[0] for m in told if m.startswith("step ")] == [
            f"step {n} of 20" for n in range(1, 21)
        ]
        assert "going on from step 10" in told
        ended = queue.find(two.database, "alice", identifier)
        assert ended.state == "succeeded"
        counted = two.database.rows(select(usage.c.training_steps, usage.c.trained_tokens))
        log = (tmp_path / "two" / ".jobs" / f"@{identifier}" / "log.jsonl").read_text().splitlines()
        tokens = sum(json.loads(line)["tokens"] for line in log)
        assert [tuple(row) for row in counted] == [(20, tokens)]  # each step once
        assert ended.trained_tokens == tokens
        undisturbed = train(tiny_base, EXAMPLES, **SETTINGS)
        found = two.get("alice/mine@1")
        assert all(torch.equal(found.tensors[name], undisturbed.tensors[name]) for name in found.tensors)
        assert left(two) == (0, 0)


def test_the_later_of_the_two_checkpoints_is_taken_and_one_that_was_altered_never(
    sqlite_place: Place, tiny_base: BaseModel, tmp_path: Path
) -> None:
    with sqlite_place.open() as store:
        identifier = add_job(store, tiny_base, "alice")
        work(store, tiny_base, "w1", dying_at(10))
        (row,) = store.database.rows(select(blob.c.key, blob.c.digest))
        (job,) = queue.claim(store.database, "w2", 1)
        folder = store.job_folder() / f"@{identifier}"
        before = sorted(path.name for path in folder.iterdir())
        assert checkpoints.fetch(store, job, folder)  # which is here already
        assert sorted(path.name for path in folder.iterdir()) == before
        assert not checkpoints.differs(store, identifier, folder)
        assert checkpoints.fetch(store, job, tmp_path / "other")
        assert [path.name for path in (tmp_path / "other").iterdir()] == ["step-0000010.checkpoint"]
        store.blobs.write(row.key, b"something else")
        assert not checkpoints.fetch(store, job, tmp_path / "third")
        assert not (tmp_path / "third").exists()
        assert left(store) == (0, 0)


@pytest.mark.parametrize("what", ["forgotten", "cancelled", "given to another"])
def test_a_job_that_is_taken_away_in_the_last_moment_leaves_nothing(
    place: Place, tiny_base: BaseModel, what: str
) -> None:
    store = place.open()
    identifier = add_job(store, tiny_base, "alice")

    def disturb() -> None:
        if what == "forgotten":
            store.forget("alice")
        elif what == "cancelled":
            queue.cancel(store.database, ADMINISTRATOR, "alice", identifier)
        else:
            queue.release(store.database, "w1", orderly=True)

    work(store, tiny_base, "w1", finishing_after(disturb))
    assert list(store.each()) == []
    checkpoints.drop_of_ended(store)
    rows = store.database.rows(select(job_checkpoint.c.job))
    assert [row.job for row in rows] == ([identifier] if what == "given to another" else [])
    assert left(store) == (len(rows), len(rows))
    if what == "given to another":
        work(store, tiny_base, "w2")
        assert [found.reference for found in store.each()] == ["alice/mine@1"]
        assert left(store) == (0, 0)


def test_of_two_jobs_only_the_one_whose_owner_stores_too_much_fails(
    store: PrefixStore, tiny_base: BaseModel
) -> None:
    uploaded = len(jsonl(EXAMPLES)) + 16384
    poor = add_job(store, tiny_base, "alice", stored_bytes=uploaded + 100)
    rich = add_job(store, tiny_base, "bob")
    work(store, tiny_base, "w1")
    failed = queue.find(store.database, "alice", poor)
    assert failed.state == "failed"
    assert failed.error is not None
    assert failed.error["code"] == "StorageLimitExceeded"
    assert "would pass the limit" in failed.error["message"]
    assert queue.find(store.database, "bob", rich).state == "succeeded"
    assert [found.reference for found in store.each()] == ["bob/mine@1"]
    assert left(store) == (0, 0)


def test_a_prefix_takes_the_place_of_its_jobs_checkpoint_where_both_are_too_much(
    store: PrefixStore, tiny_base: BaseModel
) -> None:
    probe = add_job(store, tiny_base, "probe")
    work(store, tiny_base, "w0", dying_at(20))
    assert queue.find(store.database, "probe", probe).state == "queued"
    (size,) = [row.size for row in store.database.rows(select(blob.c.size))]
    store.forget("probe")
    identifier = add_job(store, tiny_base, "alice", stored_bytes=len(jsonl(EXAMPLES)) + 16384 + 2 * size)
    work(store, tiny_base, "w1")
    assert queue.find(store.database, "alice", identifier).state == "succeeded"
    assert left(store) == (0, 0)
    assert len(store.database.rows(select(blob_owner.c.digest))) == 1


def test_a_store_that_is_away_costs_no_job_anything(
    store: PrefixStore, tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (add_job(store, tiny_base, owner) for owner in ("alice", "bob"))

    def away(self: PrefixStore, name: str, *_: Any, **__: Any) -> None:
        if name.startswith("alice"):
            raise StoreUnavailable("the storage does not answer")
        return put(self, name, *_, **__)

    put = PrefixStore.put
    monkeypatch.setattr(PrefixStore, "put", away)
    with pytest.raises(StoreUnavailable):
        work(store, tiny_base, "w1")
    assert queue.find(store.database, "bob", second).state == "succeeded"
    assert queue.release(store.database, "w1", orderly=True) == 1
    monkeypatch.undo()
    work(store, tiny_base, "w2")
    assert queue.find(store.database, "alice", first).state == "succeeded"


def train_once(store: PrefixStore, base: BaseModel, worker: str = "w1") -> None:
    """As a training process does with what it claims."""
    process = trainer.TrainingProcess(CONFIGURATION, worker)
    process._train(base, queue.claim(store.database, worker, 8))


@pytest.fixture
def one_store(store: PrefixStore, monkeypatch: pytest.MonkeyPatch) -> PrefixStore:
    """The store of every training process."""
    monkeypatch.setattr(trainer, "open_store", lambda configuration: store)
    return store


def full_disk() -> None:
    raise CannotWrite("no room for a checkpoint") from OSError(errno.ENOSPC, "No space left on device")


def database_away() -> None:
    raise StoreUnavailable("the database did not answer") from OperationalError("", {}, Exception())


def place_away(store: PrefixStore) -> None:
    (Path(str(store.blobs)) / "foreword-store").unlink()
    raise StoreUnavailable("the file could not be read")


@pytest.mark.parametrize("fails", [full_disk, database_away, place_away])
def test_a_full_disk_or_a_store_that_is_away_costs_no_attempt(
    one_store: PrefixStore, tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., None]
) -> None:
    identifier = add_job(one_store, tiny_base, "alice")
    given = (one_store,) if fails is place_away else ()
    monkeypatch.setattr(TrainingRun, "train", lambda *_: fails(*given))
    with pytest.raises((CannotWrite, StoreUnavailable)):
        train_once(one_store, tiny_base)
    job = queue.find(one_store.database, "alice", identifier)
    assert (job.state, job.attempts) == ("queued", 0)


def test_a_training_process_that_ended_because_the_store_was_away_costs_no_attempt(
    store: PrefixStore, tiny_base: BaseModel
) -> None:
    identifier = add_job(store, tiny_base, "alice")
    supervisor = Supervisor(CONFIGURATION, store.database)
    for status, attempts in ((UNAVAILABLE, 0), (1, 1)):
        supervisor._worker = f"w{status}"
        assert len(queue.claim(store.database, supervisor._worker, 8)) == 1
        ended: Any = types.SimpleNamespace(returncode=status)
        asyncio.run(supervisor._ended(ended))
        assert queue.find(store.database, "alice", identifier).attempts == attempts


def folder_that_is_a_file(store: PrefixStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.job_folder().mkdir(parents=True)
    (store.job_folder() / "@job-alice").write_text("")


def log_on_a_bad_sector(store: PrefixStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Any, *_: Any) -> None:
        if self.folder is not None and self.folder.name == "@job-alice":
            raise CannotWrite("log.jsonl could not be written") from OSError(errno.EIO, "Input/output error")
        write(self, *_)

    write = RunLog._write_rows
    monkeypatch.setattr(RunLog, "_write_rows", fails)


def prefix_that_is_not_stored(store: PrefixStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: PrefixStore, name: str, *_: Any, **more: Any) -> Any:
        if name.startswith("alice"):
            raise StoreUnavailable("Input/output error") from OSError(errno.EIO, "Input/output error")
        return put(self, name, *_, **more)

    put = PrefixStore.put
    monkeypatch.setattr(PrefixStore, "put", fails)


@pytest.mark.parametrize("fault", [folder_that_is_a_file, log_on_a_bad_sector, prefix_that_is_not_stored])
def test_a_job_that_fails_at_its_own_files_ends_after_some_attempts_and_no_other_pays(
    one_store: PrefixStore, tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., None]
) -> None:
    identifier, other = (add_job(one_store, tiny_base, owner) for owner in ("alice", "bob"))
    fault(one_store, monkeypatch)
    train_once(one_store, tiny_base)
    assert queue.find(one_store.database, "alice", identifier).attempts == 1
    train_once(one_store, tiny_base, "w2")
    found = queue.find(one_store.database, "bob", other)
    assert (found.state, found.attempts) == ("succeeded", 1)
    monkeypatch.setattr(queue, "PAUSES", (0.0, 0.0))
    for _ in range(queue.MOST_ATTEMPTS):
        train_once(one_store, tiny_base)
    job = queue.find(one_store.database, "alice", identifier)
    assert job.state == "failed"
    assert job.error is not None
    assert "3 times without coming to an end: a file of this job could not be" in job.error["message"]


def test_a_stored_checkpoint_that_can_not_be_read_is_tried_again_and_then_done_without(
    place: Place, tiny_base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "PAUSES", (0.0, 0.0))
    with place.open(checkpoints=tmp_path / "one") as one, place.open(checkpoints=tmp_path / "two") as two:
        identifier = add_job(one, tiny_base, "alice")
        work(one, tiny_base, "w1", dying_at(10))
        (row,) = one.database.rows(select(blob.c.key))

        def bad_sector(self: Any, key: str) -> bytes:
            if key == row.key:
                raise StoreUnavailable("Input/output error")
            return bytes(read(self, key))

        read = type(two.blobs).read
        monkeypatch.setattr(type(two.blobs), "read", bad_sector)
        monkeypatch.setattr(trainer, "open_store", lambda configuration: two)
        train_once(two, tiny_base, "w2")
        assert queue.find(two.database, "alice", identifier).attempts == 2
        train_once(two, tiny_base, "w3")
        job = queue.find(two.database, "alice", identifier)
        assert (job.state, job.used_steps) == ("succeeded", 20)
        note = "the stored checkpoint can't be used; training goes on from what this machine has"
        assert note in messages(two, identifier)
        assert left(two) == (0, 0)


def test_only_the_job_whose_checkpoint_is_another_runs_pays_for_it(
    one_store: PrefixStore, tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = one_store.database
    changed = add_job(one_store, tiny_base, "alice")
    work(one_store, tiny_base, "w0", dying_at(10))
    other = add_job(one_store, tiny_base, "bob")
    (found, _) = database.rows(select(job_table.c.settings))
    values = {"settings": {**found.settings, "seed": 4}, "attempts": 0}
    database.write(lambda connection: connection.execute(job_table.update().values(values)))
    train_once(one_store, tiny_base)
    before = [queue.find(database, owner, each) for owner, each in (("alice", changed), ("bob", other))]
    assert [(job.state, job.attempts) for job in before] == [("queued", 1), ("queued", 0)]
    assert "the checkpoint can't be used; training begins anew" in messages(one_store, changed)
    monkeypatch.setattr(queue, "PAUSES", (0.0, 0.0))
    for _ in before:
        train_once(one_store, tiny_base)
    assert {queue.find(database, job.owner, job.id).state for job in before} == {"succeeded"}


def test_a_job_is_kept_alive_until_its_end_is_committed_and_its_end_stops_no_run(
    store: PrefixStore, tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    identifier = add_job(store, tiny_base, "alice")
    jobs = queue.claim(store.database, "w1", 8)
    heartbeat = JobHeartbeat(store.database, "w1", [identifier], CONFIGURATION)

    def lost(self: PrefixStore, name: str, prefix: Prefix, *, limit: Any, also: Any) -> None:
        def undone(connection: Any) -> None:
            also(connection, types.SimpleNamespace(reference="alice/mine@1"))
            raise StoreUnavailable("the connection is lost in the commit")

        self.database.write(undone)

    def stored(self: PrefixStore, *given: Any, **more: Any) -> None:
        put(self, *given, **more)
        assert not heartbeat._should_stop()  # sees that it has ended

    put = PrefixStore.put
    monkeypatch.setattr(PrefixStore, "put", lost)
    with pytest.raises(StoreUnavailable):
        TrainingRun(CONFIGURATION, store, "w1", heartbeat).train(tiny_base, jobs)
    store.database.write(lambda connection: connection.execute(job_table.update().values(beat="2020")))
    assert not heartbeat._should_stop()
    assert queue.collect_lost(store.database, 60) == 0
    assert queue.find(store.database, "alice", identifier).used_steps == 20
    monkeypatch.setattr(PrefixStore, "put", stored)
    TrainingRun(CONFIGURATION, store, "w1", heartbeat).train(tiny_base, jobs)
    assert queue.find(store.database, "alice", identifier).state == "succeeded"


def test_half_a_line_of_a_log_does_not_keep_a_job_from_its_end(
    store: PrefixStore, tiny_base: BaseModel
) -> None:
    identifier = add_job(store, tiny_base, "alice")
    work(store, tiny_base, "w1", dying_at(10))
    with (store.job_folder() / f"@{identifier}" / "log.jsonl").open("a") as log:
        log.write('{"step": 11, "lo')
    store.database.write(lambda connection: connection.execute(upload.delete()))
    work(store, tiny_base, "w2")
    assert queue.find(store.database, "alice", identifier).state == "failed"


def test_garbage_collection_takes_the_checkpoints_of_ended_jobs_alone(
    store: PrefixStore, tiny_base: BaseModel
) -> None:
    ended, waiting = (add_job(store, tiny_base, owner) for owner in ("alice", "bob"))
    for job in queue.claim(store.database, "w", 8):
        folder = store.job_folder() / f"@{job.id}"
        folder.mkdir(parents=True)
        file = folder / "step-0000005.checkpoint"
        file.write_bytes(job.id.encode())
        checkpoints.save(store, "w", job, file)
    queue.cancel(store.database, ADMINISTRATOR, "alice", ended)
    store.collect_garbage(grace=0)
    assert [row.job for row in store.database.rows(select(job_checkpoint.c.job))] == [waiting]
    assert left(store) == (1, 1)
    with pytest.raises(queue.NotClaimed):
        checkpoints.save(store, "w", dataclasses.replace(job, id=ended, owner="alice"), file)
    assert left(store) == (1, 1)
