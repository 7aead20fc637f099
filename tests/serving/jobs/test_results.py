"""The metrics of a job as a file: a row for each step, what was measured and nothing else, for its owner alone."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from foreword.serving.config import Configuration
from foreword.serving.jobs import queue, results
from foreword.serving.jobs.worker import JobHeartbeat, TrainingRun
from support.gateways import Gateway, running, tiny_chat_base

EXAMPLES = "".join(json.dumps({"source": f"{a}{b}", "target": "yes"}) + "\n" for a in "abcd" for b in "efgh")
PAIRS = "".join(json.dumps({"prompt": a, "chosen": "yes", "rejected": "no"}) + "\n" for a in "abcdefgh")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running(tmp_path_factory.mktemp("gateway"), tiny_chat_base()) as found:
        yield found


def done(gateway: Gateway, client: openai.OpenAI, kind: str, content: str, *, validated: bool) -> Any:
    """A job that has ended."""
    file = client.files.create(file=("mine.jsonl", content.encode()), purpose="fine-tune").id
    hyperparameters = {
        "steps": 6,
        "length": 2,
        "batch_size": 4,
        **({"evaluate_every": 3} if validated else {}),
    }
    method: Any = {"type": kind, kind: {"hyperparameters": hyperparameters}}
    more: Any = {"validation_file": file} if validated else {}
    job = client.fine_tuning.jobs.create(model="tiny-llama", training_file=file, method=method, **more)
    assert job.result_files == []
    jobs = queue.claim(gateway.store.database, "w", 8)
    heartbeat = JobHeartbeat(gateway.store.database, "w", [one.id for one in jobs], Configuration())
    TrainingRun(Configuration(), gateway.store, "w", heartbeat).train(gateway.base, jobs)
    return client.fine_tuning.jobs.retrieve(job.id)


def rows_of(client: openai.OpenAI, job: Any) -> list[dict[str, str]]:
    (identifier,) = job.result_files
    return list(csv.DictReader(io.StringIO(client.files.content(identifier).text)))


def test_a_job_ends_in_the_metrics_of_its_steps(gateway: Gateway) -> None:
    client, other = gateway.client("alice"), gateway.client("bob")
    job = done(gateway, client, "supervised", EXAMPLES, validated=True)
    file = client.files.retrieve(job.result_files[0])
    assert (file.filename, file.purpose) == ("step_metrics.csv", "fine-tune-results")
    assert file.bytes == len(client.files.content(file.id).content)
    rows = rows_of(client, job)
    assert list(rows[0]) == ["step", "train_loss", "valid_loss"]
    assert [int(row["step"]) for row in rows] == list(range(7))
    assert [bool(row["train_loss"]) for row in rows] == [False] + [True] * 6
    assert [int(row["step"]) for row in rows if row["valid_loss"]] == [0, 3, 6]
    (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job.id).data
    best = min(float(row["valid_loss"]) for row in rows if row["valid_loss"])
    assert checkpoint.metrics.full_valid_loss == pytest.approx(best)
    with pytest.raises(openai.NotFoundError):
        other.files.content(file.id)
    client.files.delete(file.id)
    assert client.fine_tuning.jobs.retrieve(job.id).result_files == []
    assert client.fine_tuning.jobs.list().data[0].result_files == []


def test_a_job_on_preferences_has_those_of_its_rewards(gateway: Gateway) -> None:
    client = gateway.client("carol")
    rows = rows_of(client, done(gateway, client, "dpo", PAIRS, validated=False))
    assert list(rows[0]) == [
        "step",
        "train_loss",
        "valid_loss",
        "train_reward_accuracy",
        "train_reward_margin",
    ]
    assert [int(row["step"]) for row in rows] == list(range(1, 7))
    assert all(row["train_reward_accuracy"] and not row["valid_loss"] for row in rows)


def test_a_long_run_has_fewer_rows_and_those_that_were_validated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "MOST_ROWS", 10)
    log = tmp_path / "log.jsonl"
    rows: list[dict[str, float]] = [{"step": n, "loss": 1.0, "token_loss": n / 2} for n in range(1, 102)]
    rows[50]["token_loss"] = float("nan")
    rows.append({"step": 7, "dev_loss": 0.25, "time": 1.0})
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = list(csv.DictReader(io.StringIO(results.metrics_csv(log).decode())))
    assert [int(row["step"]) for row in written] == [7, *range(11, 101, 11), 101]
    assert (written[0]["train_loss"], written[0]["valid_loss"]) == ("3.5", "0.25")
