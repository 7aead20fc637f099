"""A document goes up, a job makes it a prefix beside its report, and both are the owner's."""

from __future__ import annotations

import json
import os
import signal
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from sqlalchemy import select

from foreword import BaseModel, compile_document
from foreword.documents.reading import document_from_bytes
from foreword.serving.config import Configuration
from foreword.serving.errors import Refused
from foreword.serving.jobs import documents, queue, uploads
from foreword.serving.jobs.worker import JobHeartbeat, TrainingRun
from foreword.store import PrefixStore, quota
from foreword.store.schema import job, upload, usage
from foreword.training.train import TrainingStopped
from support.few_prompts import take_few_prompts
from support.gateways import Gateway, running
from support.made_documents import encrypted, pdf_of_lines, pdf_of_streams
from support.saved_bases import CHAT_TEMPLATE
from support.stand_ins import byte_tokenizer, random_prefix, tiny_llama

TEXT = b"The gate opens at nine. Mr. Ott has the key. It closes at noon, and Ada rings a bell.\n\n# Rules\n\nNo dogs."
QUICK: dict[str, Any] = {"steps": 10, "batch_size": 4, "draw": 16, "chunk_tokens": 60, "length": 8}
EXACT: dict[str, Any] = {"hyperparameters": {"method": "exact"}}
QUESTIONS = (
    b'{"question": "When does the gate open?", "answer": "at nine"}\n'
    b'{"question": "Who has the key?", "answer": "Mr. Ott"}\n'
)
EXAMPLES = b'{"source": "When does the gate open?", "target": "nine"}\n' * 9


@pytest.fixture(autouse=True)
def _few_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    take_few_prompts(monkeypatch)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    base = BaseModel(tiny_llama(max_position_embeddings=512), tokenizer, name="tiny-llama")
    limits = {"requests_per_minute": "none", "jobs": "none"}
    with running(tmp_path_factory.mktemp("gateway"), base, limits=limits) as found:
        yield found


def send(
    client: openai.OpenAI, content: bytes = TEXT, name: str = "gate.md", purpose: Any = "user_data"
) -> str:
    return client.files.create(file=(name, content), purpose=purpose).id


def create(client: openai.OpenAI, file: str, method: dict[str, Any] | None = None, **more: Any) -> Any:
    given = {"type": "document", "document": {"hyperparameters": QUICK} if method is None else method}
    body: Any = {"model": "tiny-llama", "training_file": file, "method": given, **more}
    return client.fine_tuning.jobs.create(**body)


def work(
    store: PrefixStore, base: BaseModel, worker: str = "w", run_class: type[TrainingRun] = TrainingRun
) -> list[str]:
    """Do the run that comes next; the jobs in it."""
    jobs = queue.claim(store.database, worker, 8)
    names = [one.id for one in jobs]
    heartbeat = JobHeartbeat(store.database, worker, names, Configuration())
    run_class(Configuration(), store, worker, heartbeat).train(base, jobs)
    return names


def messages(client: openai.OpenAI, identifier: str) -> list[str]:
    return [event.message for event in client.fine_tuning.jobs.list_events(identifier, limit=100)]


def test_a_document_becomes_a_model_with_its_report_beside_it(gateway: Gateway) -> None:
    client = gateway.client("alice")
    document, questions = send(client), send(client, QUESTIONS, "questions.jsonl")
    found = client.files.retrieve(document)
    assert (found.purpose, found.filename, found.bytes) == ("user_data", "gate.md", len(TEXT))
    assert {file.id for file in client.files.list(purpose="user_data")} == {document, questions}
    assert list(client.files.list(purpose="fine-tune")) == []
    asked = {"hyperparameters": QUICK, "keep_conversations": True}
    made = create(
        client, document, asked, validation_file=questions, suffix="gate", seed=5, metadata={"a": "b"}
    )
    assert made.method.to_dict() == {"type": "document", "document": asked}
    assert (made.status, made.seed, made.metadata, made.result_files) == ("queued", 5, {"a": "b"}, [])
    with pytest.raises(openai.ConflictError, match="needs this file"):
        client.files.delete(document)
    assert work(gateway.store, gateway.base) == [made.id]
    made = client.fine_tuning.jobs.retrieve(made.id)
    assert (made.status, made.fine_tuned_model) == ("succeeded", "alice/gate@1")
    counted = gateway.store.database.rows(select(usage.c.trained_tokens).where(usage.c.owner == "alice"))
    assert [row.trained_tokens for row in counted] == [made.trained_tokens]
    report, kept = (client.files.retrieve(file) for file in made.result_files)
    assert (report.purpose, kept.purpose) == ("fine-tune-results", "user_data")
    told = json.loads(client.files.content(report.id).content)
    assert (told["document"], told["answers"], told["length"]) == ("gate.md", 2, 8)
    prefix = gateway.store.get("alice/gate")
    assert told == {"document": "gate.md", **prefix.report}
    (event,) = [
        e for e in client.fine_tuning.jobs.list_events(made.id, limit=100) if e.data and "report" in e.data
    ]
    assert event.data["report"]["harm"] == told["harm"]  # type: ignore[index]
    assert event.message.startswith("report: ")
    text = document_from_bytes(TEXT, "gate.md").text
    expected = compile_document(gateway.base, text, **QUICK, seed=5)
    assert torch.equal(prefix.tensors["decoder.key"], expected.tensors["decoder.key"])
    assert client.completions.create(model="alice/gate", prompt="When?", max_tokens=3).choices
    # What was kept is taken again, for another prefix of the same document.
    again = create(client, document, {"hyperparameters": {"method": "exact"}, "conversations": kept.id})
    with pytest.raises(openai.ConflictError, match="needs this file"):
        client.files.delete(kept.id)
    work(gateway.store, gateway.base)
    ended = client.fine_tuning.jobs.retrieve(again.id)
    assert ended.status == "succeeded", ended.error
    (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(again.id).data
    assert checkpoint.step_number == 0
    assert ended.result_files == [ended.result_files[0]]


def test_files_of_a_document_are_exported_and_forgotten_with_their_owner(
    gateway: Gateway, tmp_path: Path
) -> None:
    client = gateway.client("fay")
    document = send(client)
    create(client, document, EXACT, suffix="gate")
    work(gateway.store, gateway.base)
    gateway.store.as_owner("fay").export_owner("fay", tmp_path / "fay.zip")
    with zipfile.ZipFile(tmp_path / "fay.zip") as archive:
        listed = json.loads(archive.read("manifest.json"))["files"]
        by_name = {row["filename"]: archive.read(f"files/{row['id']}") for row in listed}
    assert sorted(by_name) == ["gate.md", "report.json"]
    assert by_name["gate.md"] == TEXT
    assert gateway.store.import_owner(tmp_path / "fay.zip", owner="gil").prefixes == 1
    assert gateway.store.forget("fay").uploads == 2
    owners = {row.owner for row in gateway.store.database.rows(select(upload.c.owner))}
    assert "fay" not in owners


@pytest.mark.parametrize(
    ("content", "name", "hyperparameters", "code", "message"),
    [
        (pdf_of_streams([b""]), "scan.pdf", {}, "BadDocument", "scan.pdf"),
        (encrypted(pdf_of_lines([[(12, "text")]]), "secret"), "locked.pdf", {}, "BadDocument", "locked.pdf"),
        (b"%PDF-1.4 nothing", "torn.pdf", {}, "BadDocument", "torn.pdf"),
        (b"\xff\xfe\x00", "page.html", {}, "BadDocument", "page.html"),
        (b"A dog.", "short.txt", {"length": 30}, "UsageError", "take a length below that"),
        (TEXT, "gate.txt", {"max_harm": 0.0, "steps": 2}, "HarmExceeded", "allow more with max_harm"),
    ],
)  # fmt: skip
def test_a_document_that_can_not_be_used_ends_its_job_and_leaves_nothing(
    gateway: Gateway, content: bytes, name: str, hyperparameters: dict[str, Any], code: str, message: str
) -> None:
    client = gateway.client("bob")
    made = create(client, send(client, content, name), {"hyperparameters": {**QUICK, **hyperparameters}})
    before = list(client.files.list())
    work(gateway.store, gateway.base)
    ended = client.fine_tuning.jobs.retrieve(made.id)
    assert ended.status == "failed"
    assert ended.error is not None
    assert ended.error.code == code
    assert message in ended.error.message
    assert (ended.fine_tuned_model, ended.result_files, list(client.files.list())) == (None, [], before)
    assert [model.id for model in client.models.list()] == ["tiny-llama"]
    assert any(m.startswith("report: ") for m in messages(client, made.id)) == (code == "HarmExceeded")


def test_conversations_about_another_text_end_the_job(gateway: Gateway) -> None:
    client = gateway.client("bob")
    other = b'{"question": "How deep is a well in Spain?", "answer": "thirty metres of stone"}\n' * 3
    given = send(client, other, "other.jsonl")
    made = create(client, send(client), {"hyperparameters": QUICK, "conversations": given})
    work(gateway.store, gateway.base)
    error = client.fine_tuning.jobs.retrieve(made.id).error
    assert error is not None
    assert (error.code, "have hardly a word in common" in error.message) == ("BadConversations", True)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"", "gate.md", "gate.md is empty"),
        (TEXT, "gate.png", "has the ending '.png'"),
        (b"%PDF-1.7 x", "gate.txt", "gate.txt is PDF"),
        (b'{"question": "a", "answer": "b"}\n{}\n', "own.jsonl", "line 2"),
    ],
)  # fmt: skip
def test_what_is_no_document_is_refused_at_the_upload(
    gateway: Gateway, content: bytes, name: str, message: str
) -> None:
    client = gateway.client("cas")
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        send(client, content, name)
    assert caught.value.code == "invalid_file"
    assert list(client.files.list()) == []


def test_a_large_file_of_conversations_is_read_by_a_process_of_its_own() -> None:
    line = b'{"question": "a", "answer": "b"}\n'
    content = line * (uploads.LARGE // len(line) + 1)
    assert uploads.check(content, "own.jsonl", "user_data").style == "conversations"
    with pytest.raises(Refused, match="found the fields none"):
        uploads.check(content + b"{}\n", "own.jsonl", "user_data")


@pytest.mark.parametrize(
    ("method", "more", "param", "message"),
    [
        ({"hyperparameters": {"lenght": 8}}, {}, "method.document.hyperparameters.lenght", "Unknown parameter"),
        ({"endpoint": "http://x"}, {}, "method.document.endpoint", "Unknown parameter"),
        ({"hyperparameters": {"draw": 10**6}}, {}, "method.document.hyperparameters.draw", "above maximum"),
        ({"hyperparameters": {"length": 8, "ratio": 2.0}}, {}, None, "length or ratio, not both"),
        ({"hyperparameters": {"length": 600}}, {}, None, "600"),
        ({"hyperparameters": {"method": "matched", "steps": 9}}, {}, None, "steps is 9, which method matched"),
        ({"conversations": "file-none"}, {}, "method.document.conversations", "no file"),
        ({"conversations": "DOCUMENT"}, {}, "method.document.conversations", "expected questions and answers"),
        ({}, {"validation_file": "DOCUMENT"}, "validation_file", "expected questions and answers"),
        ({}, {"training_file": "EXAMPLES"}, "training_file", "is no document"),
        ({}, {"model": "dan/prefix"}, "model", "is a prefix"),
        ({}, {"extra_body": {"template": {"style": "raw"}}}, "template", "no meaning for the method document"),
        ({}, {"hyperparameters": {"n_epochs": 3}}, "hyperparameters", "method.document.hyperparameters"),
        ({"gate": True}, {}, "method.document.gate", "give method.document.previous"),
        ({"previous": "dan/none"}, {}, "method.document.previous", "dan/none"),
        ({"previous": "tiny-llama"}, {}, "method.document.previous", "is the base; expected a document's prefix"),
        ({"previous": "dan/prefix"}, {}, None, "does not say which parts its document had"),
        (None, {"method": {"type": "supervised"}}, "training_file", "fine-tune"),
        (None, {"method": {"type": "supervised", "document": {"conversations": "x"}}}, "method.document", "no mean"),
    ],
)  # fmt: skip
def test_a_job_that_can_not_be_done_is_refused_by_the_field_that_is_wrong(
    gateway: Gateway, method: Any, more: dict[str, Any], param: str | None, message: str
) -> None:
    gateway.store.put("dan/prefix", random_prefix(gateway.base, 3))
    client = gateway.client("dan")
    files = {"DOCUMENT": send(client), "EXAMPLES": send(client, EXAMPLES, "e.jsonl", "fine-tune")}
    method, more = (
        json.loads(json.dumps(given).replace("DOCUMENT", files["DOCUMENT"])) for given in (method, more)
    )
    more = {
        name: files.get(value, value) if isinstance(value, str) else value for name, value in more.items()
    }
    body: Any = {"model": "tiny-llama", "training_file": files["DOCUMENT"], **more}
    body.setdefault("method", {"type": "document", "document": method})
    with pytest.raises(openai.APIStatusError, match=message) as caught:
        client.fine_tuning.jobs.create(**body)
    assert caught.value.status_code in (400, 404)
    assert caught.value.param == param
    assert list(client.fine_tuning.jobs.list()) == []


def test_an_edit_goes_on_from_a_model_and_is_the_latest_only_if_it_passes_the_gate(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = gateway.client("hal")
    first = create(client, send(client), suffix="gate")
    work(gateway.store, gateway.base)
    edited = TEXT + b"\n\n# More\n\nCats may come in on Sundays."
    document = send(client, edited)
    kept = {name: value for name, value in QUICK.items() if name != "length"}
    asked = {"hyperparameters": kept, "previous": "hal/gate", "gate": True}
    refused = create(client, document, asked, suffix="gate")
    monkeypatch.setattr("foreword.documents.edits.HARM_TIMES", 0.0)
    assert work(gateway.store, gateway.base) == [refused.id]
    refused = client.fine_tuning.jobs.retrieve(refused.id)
    assert (refused.status, refused.error.code) == ("failed", "ReportWorse")  # type: ignore[union-attr]
    assert any(each.startswith("report: ") for each in messages(client, refused.id))
    assert gateway.store.describe("hal/gate").version.number == 1
    monkeypatch.setattr("foreword.documents.edits.HARM_TIMES", 99.0)
    monkeypatch.setattr("foreword.documents.edits.MOST_WORSE", 99.0)
    made = create(client, document, asked, suffix="gate")
    assert made.method.to_dict() == {"type": "document", "document": asked}
    work(gateway.store, gateway.base)
    made = client.fine_tuning.jobs.retrieve(made.id)
    assert (made.status, made.fine_tuned_model) == ("succeeded", "hal/gate@2"), made.error
    previous = gateway.store.get("hal/gate@1")
    text = document_from_bytes(edited, "gate.md").text
    expected = compile_document(gateway.base, text, previous=previous, gate=True, **kept)
    found = gateway.store.get("hal/gate")
    assert torch.equal(found.tensors["decoder.key"], expected.tensors["decoder.key"])
    assert found.recipe["document"]["previous"] == previous.digest
    assert found.report["gate"] == expected.report["gate"]
    # A version that is gone by the job's turn ends the job.
    gone = create(client, document, asked | {"previous": "hal/gate@1"}, suffix="gate")
    gateway.store.delete("hal/gate@1")
    work(gateway.store, gateway.base)
    assert client.fine_tuning.jobs.retrieve(gone.id).status == "failed"
    assert first.id != made.id


def test_too_many_questions_are_refused(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foreword.serving.jobs.settings.MOST_QUESTIONS", 8)
    client = gateway.client("eve")
    questions = send(client, EXAMPLES, "e.jsonl", "fine-tune")
    with pytest.raises(openai.BadRequestError, match="9 answers; expected at most 8"):
        create(client, send(client), validation_file=questions)


def test_a_document_is_a_run_of_its_own(gateway: Gateway) -> None:
    client = gateway.client("ida")
    examples = send(client, EXAMPLES, "e.jsonl", "fine-tune")
    document = send(client)
    jobs = [create(client, document).id for _ in range(2)]
    supervised: Any = {"type": "supervised", "supervised": {"hyperparameters": {"steps": 1, "length": 2}}}
    jobs += [
        client.fine_tuning.jobs.create(model="tiny-llama", training_file=examples, method=supervised).id
        for _ in range(2)
    ]
    claimed = [[one.id for one in queue.claim(gateway.store.database, "w", 8)] for _ in range(3)]
    assert claimed == [jobs[:1], jobs[1:2], jobs[2:]]
    for identifier in jobs:
        client.fine_tuning.jobs.cancel(identifier)


def test_what_is_over_the_owners_limit_is_not_kept(gateway: Gateway) -> None:
    database = gateway.store.database
    limit = 0
    for owner in ("jan", "jon"):
        client = gateway.client(owner)
        identifier = create(client, send(client), EXACT, suffix="gate").id
        if owner == "jon":  # has as much, but for the report
            asked = {**queue.find(database, "jon", identifier).asked, "stored_bytes": limit - 50}
            row = job.update().where(job.c.id == identifier).values(asked=asked)
            database.write(lambda connection, row=row: connection.execute(row))
        work(gateway.store, gateway.base)
        limit = database.read(lambda connection, owner=owner: quota.stored_bytes(connection, owner))
    ended = client.fine_tuning.jobs.retrieve(identifier)
    assert ended.error is not None
    assert ended.error.code == "StorageLimitExceeded"
    assert len(list(client.files.list())) == 1
    assert [model.id for model in client.models.list()] == ["tiny-llama"]
    assert limit == len(TEXT) + quota.JOB_BYTES  # nothing of the prefix waits for garbage collection


class Died(BaseException):
    """Stands for a machine that is no more."""


class Dying(TrainingRun):
    def _save(self, identifier: str, path: Path) -> None:
        super()._save(identifier, path)
        if path.name == "step-0000005.checkpoint":
            raise Died


def test_a_job_goes_on_on_another_machine_and_ends_in_the_same_prefix(
    gateway: Gateway, tmp_path: Path
) -> None:
    client = gateway.client("kim")
    made = create(client, send(client), suffix="gate")
    with pytest.raises(Died):
        work(gateway.store, gateway.base, "w1", Dying)
    queue.release(gateway.store.database, "w1", orderly=False)
    with PrefixStore(gateway.server.configuration.store, checkpoints=tmp_path / "other") as other:
        work(other, gateway.base, "w2")
    told = messages(client, made.id)
    assert "going on from step 5" in told
    steps = [m.split(":")[0] for m in told if m.startswith("step ")][::-1]
    assert steps == [f"step {n} of 10" for n in range(11)]  # each once
    expected = compile_document(gateway.base, document_from_bytes(TEXT, "gate.md").text, **QUICK)
    found = gateway.store.get("kim/gate@1")
    assert torch.equal(found.tensors["decoder.value"], expected.tensors["decoder.value"])


def test_a_signal_stops_what_is_around_training_and_reaches_who_heard_it_before() -> None:
    heard: list[int] = []
    former = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with pytest.raises(TrainingStopped), documents.stops_at_once():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, former)
    assert heard == [signal.SIGTERM] * 2


def test_a_turn_is_not_over_before_steps_had_as_long_as_what_is_done_again(gateway: Gateway) -> None:
    client = gateway.client("lea")
    waiting = create(client, send(client)).id
    heartbeat = JobHeartbeat(gateway.store.database, "w", [], Configuration(turn_seconds=1e-6))
    assert not heartbeat._should_stop()  # nothing is trained yet
    heartbeat.training = True
    assert heartbeat._should_stop()
    heartbeat._began -= 100
    heartbeat.steps_begin()
    assert not heartbeat._should_stop()
    client.fine_tuning.jobs.cancel(waiting)
