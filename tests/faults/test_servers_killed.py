"""Two servers that answer and one that trains, on one store, killed in turns while jobs of several owners run.

What was acknowledged is kept and ends, each job once, in what an undisturbed run ends in. The one that trains comes
back as another machine each time: with a folder for checkpoints that is empty.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from foreword import BaseModel, train
from foreword.store import PrefixStore
from support.saved_bases import save_tiny
from support.served_processes import ServedProcess, jsonl, wait_for
from support.stand_ins import random_examples
from support.stores import Place

OWNERS = ("alice", "bob", "carol")
EXAMPLES = random_examples(16)
STEPS = 300
FAR = 60
"""A step behind the first checkpoints, which are written every 30 steps."""
HYPERPARAMETERS = {"steps": STEPS, "length": 3, "batch_size": 4}


class Servers:
    """The processes on one store, by what they are called; started again under the same name."""

    def __init__(self, place: Place, base: Path, folder: Path) -> None:
        self.running: dict[str, ServedProcess] = {}
        self._folder, self._starts = folder, Counter[str]()
        self._shared = ["--port", "0", "--base", str(base), "--store", str(place.arguments["place"])]
        if "blobs" in place.arguments:
            self._shared += ["--blobs", str(place.arguments["blobs"])]
        self._shared += ["--set", "lease_seconds=3", "--set", "isolated=true", "--set", "trainer_threads=1"]

    def start(self, name: str) -> None:
        number = self._starts[name]
        self._starts[name] += 1
        fresh = ["--set", f"checkpoints={self._folder / f'{name}-{number}'}"]
        own = fresh if name == "trains" else ["--no-training"]
        log = self._folder / f"{name}-{number}.log"
        self.running[name] = ServedProcess([*self._shared, *own], log, None)

    def kill(self, name: str, *, trainer: bool = True) -> None:
        process = self.running.pop(name)
        if trainer:
            process.kill()
        else:  # its training process sees that, writes a checkpoint and ends by itself
            os.kill(process.process.pid, signal.SIGKILL)
            process.process.wait()

    def logs(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in sorted(self._folder.glob("*.log")))

    def stop(self) -> None:
        for process in self.running.values():
            process.stop()


class Owner:
    """A client that asks one server after the other until one acknowledges; what was acknowledged."""

    def __init__(self, servers: Servers, name: str, key: str) -> None:
        self.name = name
        self.files: dict[str, bytes] = {}
        self.jobs: dict[str, int] = {}
        self._servers, self._key = servers, key

    def ask(self, what: Any) -> Any:
        """The answer of a server that answers, whoever is killed meanwhile."""

        def answered() -> Any:
            for name in ("one", "other"):
                if (server := self._servers.running.get(name)) is not None:
                    try:
                        return what(server.client(self._key))
                    except (openai.APIConnectionError, openai.InternalServerError):
                        continue
            return None

        return wait_for(answered, "an answer")

    def add_job(self, seed: int) -> None:
        content = jsonl(EXAMPLES)
        upload = ("mine.jsonl", content)
        file = self.ask(lambda client: client.files.create(file=upload, purpose="fine-tune")).id
        self.files[file] = content
        method: Any = {"type": "supervised", "supervised": {"hyperparameters": HYPERPARAMETERS}}
        job = self.ask(
            lambda client: client.fine_tuning.jobs.create(
                model="tiny", training_file=file, suffix=f"seed{seed}", seed=seed, method=method
            )
        )
        self.jobs[job.id] = seed

    def states(self) -> dict[str, str]:
        jobs = self.ask(lambda client: client.fine_tuning.jobs.list(limit=100)).data
        return {job.id: job.status for job in jobs}

    def events(self, job: str) -> list[Any]:
        found: list[Any] = self.ask(lambda client: client.fine_tuning.jobs.list_events(job, limit=500)).data
        return found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("bases") / "tiny", max_position_embeddings=256)


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(f"{request.param}_place")
    return found


@pytest.fixture
def servers(place: Place, tiny: Path, tmp_path: Path) -> Iterator[Servers]:
    found = Servers(place, tiny, tmp_path)
    yield found
    found.stop()


def test_what_was_acknowledged_is_kept_and_every_job_ends_once_whoever_is_killed(
    place: Place, servers: Servers, tiny: Path
) -> None:
    with place.open() as store:
        keys = {name: store.create_key(name, "owner").secret for name in OWNERS}
    for name in ("one", "other", "trains"):
        servers.start(name)
    owners = [Owner(servers, name, keys[name]) for name in OWNERS]
    seeds = itertools.count()
    for owner in owners:
        owner.add_job(next(seeds))

    def goes_on(since: set[str]) -> set[str]:
        """Jobs that have come far, and have not ended."""
        far = set()
        for owner in owners:
            for job, state in owner.states().items():
                steps = [event.data["step"] for event in owner.events(job) if event.data]
                if state == "running" and max(steps, default=0) >= FAR and job not in since:
                    far.add(job)
        return far

    def more_jobs() -> threading.Thread:
        thread = threading.Thread(target=lambda: [owner.add_job(next(seeds)) for owner in owners])
        thread.start()
        return thread

    # The machine that trains is gone at once, and a server that answers while it is asked for more.
    broken = wait_for(lambda: goes_on(set()), "a job's way")
    servers.kill("trains")
    asking = more_jobs()
    servers.kill("one")
    servers.start("trains")
    servers.start("one")
    asking.join()
    # The other server, and then the one that trains, whose training process ends by itself.
    broken |= wait_for(lambda: goes_on(broken), "another job's way")
    asking = more_jobs()
    servers.kill("other")
    servers.kill("trains", trainer=False)
    servers.start("trains")
    servers.start("other")
    asking.join()

    def all_ended() -> bool:
        return all(
            state not in ("queued", "running") for owner in owners for state in owner.states().values()
        )

    wait_for(all_ended, "the end of all jobs")
    told = {job: owner.events(job) for owner in owners for job in owner.states()}
    for owner in owners:
        assert set(owner.jobs) <= set(owner.states())
        assert set(owner.states().values()) == {"succeeded"}, servers.logs()
        for file, content in owner.files.items():
            assert owner.ask(lambda client, file=file: client.files.content(file)).content == content
    for events in told.values():
        messages = [event.message for event in events]
        assert sum(message.startswith("the job is done") for message in messages) == 1
        steps = [event.data["step"] for event in events if event.data]
        assert len(steps) == len(set(steps))
        assert max(steps) == STEPS
    # Where they went on was another machine: what it had came from the store. One may have ended before the kill.
    assert any(event.message.startswith("going on from step") for job in broken for event in told[job])
    base = BaseModel.load(tiny)
    expected = {seed: train(base, EXAMPLES, seed=seed, **HYPERPARAMETERS) for seed in range(next(seeds))}
    with PrefixStore(**place.arguments) as store:
        made = Counter[str]()
        for version in store.each():
            prefixes = [
                store.get(f"{version.owner}/{version.name}@{n}") for n in range(1, version.number + 1)
            ]
            for prefix in prefixes:
                made[prefix.labels["job"]] += 1
                same = expected[int(version.name.removeprefix("seed"))].tensors
                assert all(torch.equal(prefix.tensors[name], same[name]) for name in same)
        assert made == dict.fromkeys(told, 1)
