"""Jobs that are paused and resumed: at once, exactly, alone of their run, and by nobody but their owner."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from sqlalchemy import select

from foreword import BaseModel, train
from foreword.serving.config import Configuration
from foreword.serving.errors import Refused
from foreword.serving.jobs import queue, trainer, uploads
from foreword.serving.jobs.queue import Job
from foreword.serving.jobs.worker import JobHeartbeat, TrainingRun
from foreword.store import PrefixStore
from foreword.store.access import Caller
from foreword.store.schema import job as table
from foreword.store.schema import job_checkpoint, usage
from foreword.training.run_log import Progress
from support.gateways import running
from support.served_processes import jsonl
from support.stand_ins import random_examples
from support.stores import Place

EXAMPLES = random_examples(8)
SETTINGS = {"steps": 20, "length": 2, "batch_size": 4, "seed": 3}
CONFIGURATION = Configuration(isolated=True)


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(f"{request.param}_place")
    return found


@pytest.fixture
def store(sqlite_place: Place) -> Iterator[PrefixStore]:
    with sqlite_place.open() as opened:
        yield opened


def add_job(store: PrefixStore, base: BaseModel, owner: str, *, limit: int | None = None) -> str:
    caller = Caller(owner, "owner")
    file = uploads.add(store.database, caller, owner, "mine.jsonl", jsonl(EXAMPLES), limit=None)
    settings = {**SETTINGS, "template": base.template.to_json(), "start": None}
    identifier = f"job-{owner}"
    record = Job(
        id=identifier, owner=owner, created="2026-01-01T00:00:00.000000+00:00", state="queued", model="m",
        name="mine", training_file=file.id, validation_file=None, settings=settings, alike="a",
        asked={"hyperparameters": {}, "metadata": None, "stored_bytes": None},
    )  # fmt: skip
    queue.add(store.database, caller, record, limit=limit)
    return identifier


def pause(store: PrefixStore, owner: str) -> Job:
    return queue.pause(store.database, Caller(owner, "owner"), owner, f"job-{owner}")


def resume(store: PrefixStore, owner: str) -> Job:
    return queue.resume(store.database, Caller(owner, "owner"), owner, f"job-{owner}")


def find(store: PrefixStore, owner: str) -> Job:
    return queue.find(store.database, owner, f"job-{owner}")


def events(store: PrefixStore, owner: str) -> list[str]:
    return [e["message"] for e in queue.events(store.database, f"job-{owner}", 100, None)[0]][::-1]


def work(
    store: PrefixStore, base: BaseModel, worker: str, at: Callable[[str, int], None] | None = None
) -> list[str]:
    """Do the run that comes next, with `at` called behind every step, and the heartbeat's look behind that."""
    jobs = queue.claim(store.database, worker, 8)
    heartbeat = JobHeartbeat(store.database, worker, [job.id for job in jobs], CONFIGURATION)

    class Watched(TrainingRun):
        def _progress(self, progress: Progress) -> None:
            super()._progress(progress)
            if at is not None and progress.note is None:
                at(progress.owner or "", progress.step)
                assert not heartbeat._should_stop()  # the run goes on

    Watched(CONFIGURATION, store, worker, heartbeat).train(base, jobs)
    queue.release(store.database, worker, orderly=True)
    return [job.id for job in jobs]


def same_as_undisturbed(store: PrefixStore, base: BaseModel, owner: str) -> bool:
    expected = train(base, EXAMPLES, **SETTINGS)
    found = store.get(f"{owner}/mine@1")
    return all(torch.equal(found.tensors[name], expected.tensors[name]) for name in found.tensors)


def test_a_paused_job_leaves_its_run_and_goes_on_bit_for_bit_on_another_machine(
    place: Place, tiny_base: BaseModel, tmp_path: Path
) -> None:
    with place.open(checkpoints=tmp_path / "one") as one, place.open(checkpoints=tmp_path / "two") as two:
        names = [add_job(one, tiny_base, owner) for owner in ("alice", "bob")]

        def at(identifier: str, step: int) -> None:
            if (identifier, step) == ("job-alice", 7):
                assert pause(one, "alice").state == "paused"

        assert work(one, tiny_base, "w1", at) == names
        assert find(one, "bob").state == "succeeded"
        assert same_as_undisturbed(one, tiny_base, "bob")
        assert "training makes room; it goes on from its checkpoint" not in events(one, "bob")
        left = find(one, "alice")
        assert (left.state, left.worker, left.attempts, left.used_steps) == ("paused", None, 0, 7)
        (row,) = one.database.rows(select(job_checkpoint.c.job, job_checkpoint.c.step))
        assert tuple(row) == ("job-alice", 7)
        assert "the job is to pause after the step under way" in events(one, "alice")
        assert events(one, "alice")[-1] == "the job is paused at step 7; its checkpoint is kept"
        assert queue.claim(two.database, "w2", 8) == []
        assert resume(two, "alice").state == "queued"
        assert work(two, tiny_base, "w2") == ["job-alice"]
        assert same_as_undisturbed(two, tiny_base, "alice")
        told = events(two, "alice")
        assert "going on from step 7" in told
        steps = [m.split(":")[0] for m in told if m.startswith("step ")]
        assert steps == [f"step {n} of 20" for n in range(1, 21)]
        counted = two.database.rows(select(usage.c.training_steps).where(usage.c.owner == "alice"))
        assert [row.training_steps for row in counted] == [20]
        assert two.database.rows(select(job_checkpoint.c.job)) == []


def test_a_job_that_waits_is_paused_at_once_and_one_that_ended_is_not(
    store: PrefixStore, tiny_base: BaseModel
) -> None:
    add_job(store, tiny_base, "alice")
    with pytest.raises(Refused, match="not paused: queued"):
        resume(store, "alice")
    pause(store, "alice")
    with pytest.raises(Refused, match="paused already"):
        pause(store, "alice")
    assert work(store, tiny_base, "w") == []
    assert not queue.waits(store.database)
    assert queue.live(store.database) == {"job-alice"}  # no sweep takes its checkpoints
    resume(store, "alice")
    work(store, tiny_base, "w")
    assert find(store, "alice").state == "succeeded"
    for change in (pause, resume):
        with pytest.raises(Refused, match="ended already: succeeded"):
            change(store, "alice")


def test_a_job_resumed_before_its_worker_let_go_stays_or_goes_back_into_the_queue(
    store: PrefixStore, tiny_base: BaseModel
) -> None:
    add_job(store, tiny_base, "alice")

    def at(identifier: str, step: int) -> None:
        if step == 5:
            pause(store, "alice")
            assert resume(store, "alice").state == "running"

    work(store, tiny_base, "w", at)
    assert find(store, "alice").state == "succeeded"
    add_job(store, tiny_base, "bob")
    queue.claim(store.database, "w", 8)
    pause(store, "bob")
    resume(store, "bob")
    queue.leave(store.database, "w", "job-bob", 3, queue.Used(3, 30))  # it had seen the pause alone
    assert find(store, "bob").state == "queued"
    assert find(store, "bob").attempts == 0


@pytest.mark.parametrize("how", ["died", "silent", "stopped"])
def test_a_paused_job_whose_worker_is_gone_can_be_resumed(
    store: PrefixStore, tiny_base: BaseModel, how: str
) -> None:
    add_job(store, tiny_base, "alice")
    queue.claim(store.database, "w", 8)
    pause(store, "alice")
    if how == "silent":
        store.database.write(lambda c: c.execute(table.update().values(beat="2026-01-01T00:00:00")))
        queue.collect_lost(store.database, 1.0)
    else:
        queue.release(store.database, "w", orderly=how == "stopped")
    assert (find(store, "alice").state, find(store, "alice").worker) == ("paused", None)
    assert resume(store, "alice").state == "queued"
    work(store, tiny_base, "w2")
    assert same_as_undisturbed(store, tiny_base, "alice")


def test_a_documents_run_stops_where_it_is(store: PrefixStore, tiny_base: BaseModel) -> None:
    add_job(store, tiny_base, "alice")
    queue.claim(store.database, "w", 8)
    heartbeat = JobHeartbeat(store.database, "w", ["job-alice"], CONFIGURATION)
    heartbeat.hears = True  # as while a document is made a prefix
    assert not heartbeat._should_stop()
    pause(store, "alice")
    assert heartbeat._should_stop()
    queue.release(store.database, "w", orderly=True)
    assert (find(store, "alice").state, find(store, "alice").attempts) == ("paused", 0)
    assert events(store, "alice")[-1] == "the job is paused; its last checkpoint is kept"


def test_a_paused_job_counts_as_unfinished_and_holds_its_file(
    store: PrefixStore, tiny_base: BaseModel
) -> None:
    add_job(store, tiny_base, "alice")
    pause(store, "alice")
    with pytest.raises(Refused, match="1 unfinished jobs"):
        add_job(store, tiny_base, "alice", limit=1)
    file = find(store, "alice").training_file
    with pytest.raises(Refused, match="needs this file"):
        uploads.remove(store.database, Caller("alice", "owner"), "alice", file)
    done = queue.cancel(store.database, Caller("alice", "owner"), "alice", "job-alice")
    assert done.state == "cancelled"


def test_the_last_job_of_a_run_that_leaves_ends_it(store: PrefixStore, tiny_base: BaseModel) -> None:
    add_job(store, tiny_base, "alice")
    work(store, tiny_base, "w", lambda identifier, step: step == 3 and pause(store, "alice"))  # type: ignore[arg-type,return-value]
    assert find(store, "alice").used_steps == 3


def test_the_client_pauses_and_resumes(tiny_base: BaseModel, tmp_path: Path) -> None:
    with running(tmp_path, tiny_base) as gateway:
        client, other = gateway.client("alice"), gateway.client("bob")
        file = client.files.create(file=("mine.jsonl", jsonl(EXAMPLES)), purpose="fine-tune")
        hyperparameters: Any = {"steps": 4, "length": 2}
        method: Any = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
        job = client.fine_tuning.jobs.create(model="tiny-llama", training_file=file.id, method=method)
        with pytest.raises(openai.NotFoundError):
            other.fine_tuning.jobs.pause(job.id)
        with pytest.raises(openai.PermissionDeniedError):
            gateway.client("alice", role="reader").fine_tuning.jobs.pause(job.id)
        assert str(client.fine_tuning.jobs.pause(job.id).status) == "paused"
        with pytest.raises(openai.BadRequestError) as refused:
            client.fine_tuning.jobs.pause(job.id)
        assert refused.value.code == "job_paused"
        assert client.fine_tuning.jobs.resume(job.id).status == "queued"
        work(gateway.store, gateway.base, "w")
        assert client.fine_tuning.jobs.retrieve(job.id).status == "succeeded"


def test_the_paused_jobs_folder_survives_the_sweep(
    store: PrefixStore, tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_job(store, tiny_base, "alice")
    work(store, tiny_base, "w", lambda identifier, step: step == 3 and pause(store, "alice"))  # type: ignore[arg-type,return-value]
    monkeypatch.setattr(trainer, "open_store", lambda configuration: store)
    trainer.TrainingProcess(CONFIGURATION, "w")._sweep()
    assert [each.name for each in store.job_folder().iterdir()] == ["@job-alice"]
