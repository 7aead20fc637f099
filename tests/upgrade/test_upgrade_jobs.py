"""A server on the store that a killed one left behind finishes its jobs, and takes the old requests."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from foreword import PrefixStore
from upgrade import runs, surface

FOLDER = surface.FIXTURES / "jobs"
EXPECTED = surface.recorded("jobs/expected.json")
LONGEST = 120.0
HYPERPARAMETERS = {
    "n_epochs": 2,
    "batch_size": 3,
    "learning_rate_multiplier": 0.5,
    "length": 3,
    "steps": 5,
    "learning_rate": 0.01,
    "parameterization": "mlp",
    "init": "random",
    "layers": "first:1",
    "warmup": 0.5,
    "weight_decay": 0.25,
    "clip": 0.5,
    "evaluate_every": 2,
    "patience": 3,
    "max_length": 40,
}


@pytest.fixture(scope="module")
def server(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, Path]]:
    folder = tmp_path_factory.mktemp("killed")
    shutil.copytree(FOLDER / "store", folder / "store")
    store = str(folder / "store")
    runs.migrate(lambda: PrefixStore(store, create=False), ["--store", store])
    (folder / "tiny-llama").symlink_to(saved / "tiny-llama")
    settings = {"trainer_threads": 1, "jobs_together": 1, "lease_seconds": 1, "idle_seconds": 5}
    words = [
        "serve",
        "--json",
        "--port",
        "0",
        "--base",
        "tiny-llama",
        "--device",
        "cpu",
        "--dtype",
        "float32",
    ]
    words += [
        "--store",
        "store",
        *(w for name, value in settings.items() for w in ("--set", f"{name}={value}")),
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", "from foreword.cli import main; main()", *words],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "FOREWORD_CACHE": str(saved / "cache")},
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, (folder / "log").read_text()
        url = json.loads(line)["url"]
        headers = {"authorization": f"Bearer {EXPECTED['secret']}"}
        with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
            yield client, folder
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def ended(client: httpx.Client, identifier: str) -> dict[str, Any]:
    deadline = time.monotonic() + LONGEST
    while True:
        job: dict[str, Any] = client.get(f"/fine_tuning/jobs/{identifier}").json()
        if job["status"] not in ("queued", "running"):
            return job
        assert time.monotonic() < deadline, job
        time.sleep(0.1)


def test_what_was_queued_or_half_trained_is_finished(
    server: tuple[httpx.Client, Path], check_result: Callable[..., None]
) -> None:
    client, folder = server
    jobs = EXPECTED["jobs"]
    for name, expected in EXPECTED["results"].items():
        job = ended(client, jobs[name])
        assert job["status"] == "succeeded", job
        with PrefixStore(folder / "store", create=False) as store:
            prefix = store.get(f"alice/{name}@1")
            assert store.describe(f"alice/{name}").numbers == (1,)
        assert prefix.labels["job"] == jobs[name]
        check_result(prefix, expected, FOLDER / f"{name}.prefix", EXPECTED["machine"])
    assert ended(client, jobs["cancelled"])["status"] == "cancelled"


def test_the_half_trained_one_went_on_from_its_checkpoint(server: tuple[httpx.Client, Path]) -> None:
    client, _ = server
    ended(client, EXPECTED["jobs"]["half"])
    path = f"/fine_tuning/jobs/{EXPECTED['jobs']['half']}/events"
    events = client.get(path, params={"limit": 100}).json()["data"]
    steps = [event["data"]["step"] for event in reversed(events) if event.get("data")]
    # It was killed at step 20, with a checkpoint of step 18.
    assert max(steps) == 30
    assert min(steps[steps.index(19) :]) >= 18


def test_jobs_and_files_are_shown_as_they_were_made(server: tuple[httpx.Client, Path]) -> None:
    client, _ = server
    queued = client.get(f"/fine_tuning/jobs/{EXPECTED['jobs']['queued']}").json()
    assert queued["metadata"] == {"for": "tests"}
    assert queued["hyperparameters"]["n_epochs"] == 2
    half = client.get(f"/fine_tuning/jobs/{EXPECTED['jobs']['half']}").json()
    assert half["seed"] == 3
    assert client.get(f"/files/{half['training_file']}").json()["filename"] == "mine.jsonl"
    listed = {model["id"] for model in client.get("/models").json()["data"]}
    assert {"tiny-llama", "alice/start", "alice/done"} <= listed


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_a_hyperparameter_is_taken_and_shown(server: tuple[httpx.Client, Path], name: str) -> None:
    client, _ = server
    done = client.get(f"/fine_tuning/jobs/{EXPECTED['jobs']['done']}").json()
    given = {name: HYPERPARAMETERS[name]}
    body: dict[str, Any] = {
        "model": "tiny-llama",
        "training_file": done["training_file"],
        "method": {"type": "supervised", "supervised": {"hyperparameters": given}},
    }
    if name == "patience":  # with dev losses to be patient about
        body["validation_file"] = done["training_file"]
    made = client.post("/fine_tuning/jobs", json=body)
    assert made.status_code == 200, made.text
    job = made.json()
    assert job["hyperparameters"][name] == HYPERPARAMETERS[name]
    client.post(f"/fine_tuning/jobs/{job['id']}/cancel")


def test_the_names_of_all_hyperparameters_are_tried(server: tuple[httpx.Client, Path]) -> None:
    before = surface.recorded("jobs/api.json")["hyperparameters"]
    assert set(before) == set(HYPERPARAMETERS)


def test_routes_and_measurements_have_their_names(server: tuple[httpx.Client, Path]) -> None:
    client, _ = server
    before = surface.recorded("jobs/api.json")
    found = describe(client)
    assert set(before["measurements"]) <= set(found["measurements"])
    for path, methods in before["routes"].items():
        assert set(methods) <= set(found["routes"].get(path, ())), path


def describe(client: httpx.Client) -> dict[str, Any]:
    """Routes, measurements and hyperparameters of a server."""
    root = str(client.base_url).removesuffix("/").removesuffix("/v1")
    told = httpx.get(f"{root}/openapi.json").json()
    return {
        "routes": {path: sorted(methods) for path, methods in sorted(told["paths"].items())},
        "measurements": sorted(
            set(re.findall(r"^# TYPE (\S+)", httpx.get(f"{root}/metrics").text, flags=re.M))
        ),
    }
