"""Jobs, from the upload to the prefix, with every point of them failing once.

The operation that trains is a whole supervisor: it starts a training process (here in the same process), gives back
what one that died still held, and starts another, until no job is left.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from faults.boundary import BESIDE
from faults.scenarios import Operation as Op
from faults.scenarios import Scenario
from faults.store_world import StoreWorld, rows_of
from foreword import BaseModel
from foreword.errors import CannotWrite, ForewordError, StoreUnavailable
from foreword.serving.config import of
from foreword.serving.errors import Refused
from foreword.serving.jobs import queue, trainer, uploads, worker
from foreword.serving.jobs.queue import Job
from foreword.store import PrefixStore, schema
from foreword.store.access import ADMINISTRATOR
from support.served_processes import jsonl
from support.stand_ins import random_examples

EXAMPLES = jsonl(random_examples(4))
MOST_RUNS = 8
"""Training processes that a supervisor starts for one job; more, and it would go on for ever."""
OUTSIDE = (
    "create",
    "write",
    "flush",
    "rename",
    "delete",
    "make folder",
    "serialize",
    "training step",
    "query",
)
"""Points at which no transaction is open that others would wait for."""


def upload(world: StoreWorld) -> None:
    uploads.add(world.store.database, ADMINISTRATOR, "a", "mine.jsonl", EXAMPLES, limit=None)


def file_of(store: PrefixStore) -> str:
    ((file, *_), _) = uploads.listed(store.database, "a", 10, None)
    return file.id


def add_job(store: PrefixStore, name: str, settings: dict[str, Any]) -> None:
    record = Job(
        id=f"ftjob-{name}",
        owner="a",
        created=schema.now(),
        state="queued",
        model="tiny",
        name=name,
        training_file=file_of(store),
        validation_file=None,
        settings=settings,
        alike="alike",
        asked={"hyperparameters": {}, "metadata": None},
    )
    queue.add(store.database, ADMINISTRATOR, record, limit=10)


def on_queue(name: str, do: Callable[[Any], Any], *before: type[Exception], once: bool = False) -> Op:
    return Op(name, lambda world: do(world.store.database), None if once else before)


def test_uploads_and_the_queue(world_folder: Path, database: str | None, injected: Any) -> None:
    scenario = Scenario(
        "upload, create, claim, break off, fail, cancel, delete",
        [
            # Repeated by who lost the answer, these two make another: the file and the job are listed.
            Op("upload", upload, None),
            Op("create a job", lambda world: add_job(world.store, "one", {}), None),
            on_queue("claim", lambda database: queue.claim(database, "w1", 8), once=True),
            on_queue("heartbeat", lambda database: queue.heartbeat(database, "w1", ["ftjob-one"])),
            on_queue("advanced", lambda database: queue.advanced(database, "w1", "ftjob-one")),
            on_queue("note", lambda database: queue.note(database, "ftjob-one", "info", "step 1")),
            on_queue("release", lambda database: queue.release(database, "w1", orderly=False)),
            on_queue("claim again", lambda database: queue.claim(database, "w2", 8), once=True),
            on_queue(
                "fail",
                lambda database: queue.fail(database, "w2", "ftjob-one", "x", "y", queue.Used(1, 20)),
                queue.NotClaimed,
            ),
            Op("create another", lambda world: add_job(world.store, "two", {}), None),
            on_queue(
                "cancel", lambda database: queue.cancel(database, ADMINISTRATOR, "a", "ftjob-two"), Refused
            ),
            Op(
                "delete the file",
                lambda world: uploads.remove(world.store.database, ADMINISTRATOR, "a", file_of(world.store)),
                (Refused, ValueError),  # `file_of` finds none
            ),
        ],
        sparse=True,  # each operation is a site of its own
    )
    injected(scenario, StoreWorld(world_folder, database), postgres=database is not None)


class JobWorld(StoreWorld):
    """A store with a file and a job that waits."""

    base: BaseModel

    def setup(self, store: PrefixStore) -> None:
        """See `StoreWorld.setup`."""
        uploads.add(store.database, ADMINISTRATOR, "a", "mine.jsonl", EXAMPLES, limit=None)
        template = self.base.template.dated(self.base.tokenizer)
        settings = {"length": 2, "steps": 3, "batch_size": 2, "seed": 0}
        add_job(store, "mine", {**settings, "template": template.to_json(), "start": None})

    def training_process(self) -> tuple[str, trainer.TrainingProcess]:
        """A worker's name, and the worker."""
        places = {"store": str(self.arguments["place"]), "checkpoints": str(self.arguments["checkpoints"])}
        if "blobs" in self.arguments:
            places["blobs"] = str(self.arguments["blobs"])
        settings = {"base": "tiny", "isolated": True, "idle_seconds": 0.001, "lease_seconds": 1000.0}
        name = f"worker-{secrets.token_hex(4)}"
        return name, trainer.TrainingProcess(of({**settings, **places}), name)

    def seen(self, store: PrefixStore) -> dict[str, Any]:
        """See `StoreWorld.seen`: the steps that events tell of twice, too."""
        told = Counter(r.message for r in rows_of(store, "job_event") if r.message.startswith("step "))
        return {**super().seen(store), "told twice": [step for step, times in told.items() if times > 1]}

    def check_clean(self) -> list[str]:
        """See `World.check_clean`: a training process removes what ended jobs left."""
        _, process = self.training_process()
        process.work()
        with self.fresh().store as store:
            folder = store.job_folder()
            left = [f"the folder {path.name}" for path in folder.iterdir()] if folder.is_dir() else []
            left += [f"the checkpoint of {row.job}" for row in rows_of(store, "job_checkpoint")]
        return left + super().check_clean()


def train_all(world: JobWorld) -> None:
    """What supervisor.py does, until no job is left."""
    for _ in range(MOST_RUNS):
        name, orderly = "", False
        try:
            queue.collect_lost(world.store.database, 0.0)  # whoever was killed before is silent
            if not queue.live(world.store.database):
                return
            name, process = world.training_process()
            process.work()
            orderly = True
        except (ForewordError, MemoryError, torch.OutOfMemoryError) as error:
            orderly = isinstance(error, (StoreUnavailable, CannotWrite))  # as supervisor.py takes it
            world.make_room()
        try:
            queue.release(world.store.database, name, orderly=orderly)
        except (ForewordError, MemoryError):  # then its lease ends
            continue
    raise AssertionError(f"jobs are left after {MOST_RUNS} training processes")


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch, tiny_base: BaseModel, no_pictures: None) -> type[JobWorld]:
    """A world whose training processes need not load a model, nor wait."""
    monkeypatch.setattr(trainer, "open_base", lambda *_: tiny_base)
    monkeypatch.setattr(trainer, "POLL_SECONDS", 0.002)
    monkeypatch.setattr(worker, "LONGEST_PAUSE", 1000.0)  # heartbeats come by the clock, not at points
    monkeypatch.setattr(queue, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(JobWorld, "base", tiny_base, raising=False)
    return JobWorld


TRAIN = Op("train", train_all, whole=False)


def test_a_job_ends_in_one_prefix(
    world_folder: Path, database: str | None, jobs: type[JobWorld], injected: Any
) -> None:
    """Whatever fails once, it succeeds in the same prefix, is counted once, and leaves nothing.

    On PostgreSQL it is what jobs themselves ask of the database; the store fails in its own scenarios.
    """
    scenario = Scenario(
        "a job: claim, train, checkpoints, prefix",
        [TRAIN],
        only=lambda point: database is None or "serving/jobs" in point.site,
        sparse=True,
        recovers=True,
    )
    injected(scenario, jobs(world_folder, database), postgres=database is not None)


def test_an_owner_forgotten_at_any_moment_of_a_job(
    world_folder: Path, database: str | None, jobs: type[JobWorld], injected: Any
) -> None:
    def forget(world: JobWorld) -> None:
        with world.fresh().store as store:
            store.forget("a")

    lists = ("latest", "labels", "shares", "keys", "uploads", "jobs", "usage", "faults", "told twice")
    nothing: dict[str, Any] = {name: [] for name in lists}
    scenario = Scenario(
        "a job whose owner is forgotten meanwhile",
        [TRAIN],
        meanwhile=forget,
        only=lambda point: point.kind in OUTSIDE,
        failures=[BESIDE],
        final={**nothing, "versions": {}, "others": {}},
    )
    injected(scenario, jobs(world_folder, database), postgres=database is not None)
