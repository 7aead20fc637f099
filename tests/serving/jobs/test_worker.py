"""Jobs in a real training process beside a real server: exact, stoppable, and hard to kill."""

from __future__ import annotations

import datetime
import json
import socket
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest
import torch
from typer.testing import CliRunner

from foreword import BaseModel, Prefix, train
from foreword.cli import app
from foreword.store import PrefixStore
from support.saved_bases import save_tiny
from support.served_processes import finished, jsonl, served, step_of, wait_for
from support.stand_ins import random_examples

EXAMPLES = random_examples(16)
PAUSE = 0.02
HELLO: Any = [{"role": "user", "content": "a private word"}]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("bases") / "tiny", max_position_embeddings=256)


def start_job(client: openai.OpenAI, name: str, steps: int, seed: int = 3, **more: Any) -> str:
    file = client.files.create(file=("mine.jsonl", jsonl(EXAMPLES)), purpose="fine-tune")
    hyperparameters = {"steps": steps, "length": 3, "batch_size": 4, **more}
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    job = client.fine_tuning.jobs.create(
        model="tiny", training_file=file.id, suffix=name, seed=seed, method=method, metadata={"for": "tests"}
    )
    assert job.status == "queued"
    assert job.metadata == {"for": "tests"}
    return job.id


def undisturbed(tiny: Path, steps: int, seed: int = 3) -> Prefix:
    return train(BaseModel.load(tiny), EXAMPLES, steps=steps, length=3, batch_size=4, seed=seed)


def same_tensors(first: Prefix, second: Prefix) -> bool:
    return all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


def test_jobs_survive_kill_9_of_everything_and_end_in_the_same_prefix(tiny: Path, tmp_path: Path) -> None:
    """One of them loses the checkpoints of this machine, too, and goes on from the one in the store."""
    isolated = ("--set", "isolated=true")  # what each gets alone, to the bit
    with served(tmp_path, tiny, *isolated) as first:
        client = first.client()
        identifier, damaged = (start_job(client, name, 400) for name in ("mine", "damaged"))
        for each in (identifier, damaged):
            wait_for(lambda each=each: step_of(client, each) >= 90, "step 90")
        first.kill()
    files = list((tmp_path / "store" / "checkpoints" / ".jobs" / f"@{damaged}").glob("*.checkpoint"))
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    with served(tmp_path, tiny, *isolated) as second:
        client = second.client()
        job = finished(client, identifier)
        assert (job.status, job.fine_tuned_model) == ("succeeded", "local/mine@1")
        messages = [e.message for e in client.fine_tuning.jobs.list_events(identifier, limit=200)]
        assert any(m.startswith("going on from step") and "/" not in m for m in messages)
        assert "training broke off; it goes on from the last checkpoint" in messages
        (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(identifier).data
        assert checkpoint.fine_tuned_model_checkpoint == "local/mine@1"
        assert client.chat.completions.create(model="local/mine", messages=HELLO, max_tokens=3).choices
        anew = finished(client, damaged)
        assert anew.status == "succeeded", (anew.error, second.log.read_text())
        told = client.fine_tuning.jobs.list_events(damaged, limit=200).data
        messages = [e.message for e in told]
        assert "the checkpoint can't be used; training goes on from the stored one" in messages
        assert any(m.startswith("going on from step") for m in messages)
        steps = [e.data["step"] for e in told if e.data]  # type: ignore[index]
        assert len(steps) == len(set(steps))
        assert second.stop() == 0
    expected = undisturbed(tiny, 400)
    with PrefixStore(tmp_path / "store") as store:
        assert [v.number for v in store.each()] == [1, 1]
        for name, number in (("mine", identifier), ("damaged", damaged)):
            prefix = store.get(f"local/{name}")
            assert same_tensors(prefix, expected)
            assert prefix.origin.steps == 400
            assert prefix.labels["job"] == number
        prefix = store.get("local/mine")
    # The job's own time: a job that is finished twice puts the same bytes, which is no second version.
    assert int(datetime.datetime.fromisoformat(prefix.created).timestamp()) == job.created_at
    assert job.trained_tokens > 400
    assert list((tmp_path / "store" / "checkpoints" / ".jobs").iterdir()) == []


def test_sigterm_finishes_what_runs_refuses_what_is_new_and_keeps_jobs(tiny: Path, tmp_path: Path) -> None:
    with served(tmp_path, tiny, pause=PAUSE) as server:
        client = server.client()
        identifier = start_job(client, "mine", 500)
        wait_for(lambda: step_of(client, identifier) >= 20, "step 20")
        stream = client.completions.create(
            model=server.base, prompt="a private word", max_tokens=120, temperature=0, stream=True
        )
        pieces = [next(stream).choices[0].text]
        server.process.terminate()
        wait_for(lambda: server.events("draining"), "draining")
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(model=server.base, prompt="x", max_tokens=1)
        assert caught.value.status_code == 503
        assert caught.value.code == "unavailable"
        assert caught.value.response.headers["retry-after"] == "5"
        assert httpx.get(server.url.replace("/v1", "/readyz")).status_code == 503
        assert httpx.get(server.url.replace("/v1", "/healthz")).json() == {"status": "draining"}
        chunks = list(stream)
        assert chunks[-1].choices[0].finish_reason == "length"
        assert len("".join([*pieces, *(chunk.choices[0].text for chunk in chunks)])) > 60
        assert server.process.wait(60) == 0
        log = server.log.read_text()
    assert "private" not in log
    assert "source" not in log
    assert {"request", "draining", "drained", "trainer ended"} <= {
        json.loads(line)["event"] for line in log.splitlines() if line.startswith("{")
    }
    with served(tmp_path, tiny) as server:
        job = finished(server.client(), identifier)
        assert job.status == "succeeded"
        messages = [e.message for e in server.client().fine_tuning.jobs.list_events(identifier, limit=200)]
        assert "training makes room; it goes on from its checkpoint" in messages
    with PrefixStore(tmp_path / "store") as store:
        assert same_tensors(store.get("local/mine"), undisturbed(tiny, 500))


def test_jobs_share_a_run_give_way_and_can_be_cancelled(tiny: Path, tmp_path: Path) -> None:
    with served(tmp_path, tiny, "--set", "turn_seconds=0.5", "--set", "isolated=true") as server:
        client = server.client()
        long = start_job(client, "long", 100_000)
        together = [start_job(client, f"short{n}", 40) for n in range(3)]
        bad = start_job(client, "bad", 60, learning_rate=10.0, clip=0.0, parameterization="mlp")
        for identifier in together:
            assert finished(client, identifier).status == "succeeded"
        assert finished(client, bad).status in ("succeeded", "failed")
        taken = [row["jobs"] for row in server.events("training begins")]
        assert sorted(together) in [sorted(jobs) for jobs in taken]
        wait_for(lambda: client.fine_tuning.jobs.retrieve(long).status == "running", "the long job's turn")
        assert client.fine_tuning.jobs.cancel(long).status == "cancelled"
        with pytest.raises(openai.BadRequestError, match="ended already"):
            client.fine_tuning.jobs.cancel(long)
        after = start_job(client, "after", 5)
        assert finished(client, after).status == "succeeded"
        assert client.fine_tuning.jobs.retrieve(long).fine_tuned_model is None
        forgotten = start_job(client, "forgotten", 100_000)
        wait_for(lambda: step_of(client, forgotten) > 0, "a step of the job that is forgotten")
        names = [model.id for model in client.models.list()]
        assert "local/long" not in names
        assert {"local/short0", "local/short1", "local/short2", "local/after"} <= set(names)
        expected = undisturbed(tiny, 40)
        with PrefixStore(tmp_path / "store") as store:
            assert all(same_tensors(store.get(f"local/short{n}"), expected) for n in range(3))
            assert store.forget("local").jobs == 7
        # The training process lets go of the job that is no more, and takes the next.
        fresh = start_job(client, "fresh", 5)
        assert finished(client, fresh).status == "succeeded"
        assert [model.id for model in client.models.list()] == ["tiny", "local/fresh"]
    assert list((tmp_path / "store" / "checkpoints" / ".jobs").glob("*/*.checkpoint")) == []


def test_a_drain_that_takes_too_long_ends_all_the_same(tiny: Path, tmp_path: Path) -> None:
    with served(tmp_path, tiny, "--set", "drain_seconds=0.5", pause=0.5) as server:
        stream = server.client().completions.create(
            model=server.base, prompt="x", max_tokens=200, temperature=0, stream=True
        )
        next(stream)
        assert server.stop() == 0
        with pytest.raises((httpx.TransportError, openai.APIConnectionError, httpx2.TransportError)):
            list(stream)


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(tiny: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        arguments = ["serve", "--json", "--no-keys", "--base", str(tiny), "--store", str(tmp_path / "store")]
        arguments += ["--port", str(taken.getsockname()[1])]
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "choose another --host or --port" in json.loads(result.stdout)["error"]["message"]
    assert not (tmp_path / "store").exists()
