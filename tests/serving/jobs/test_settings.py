"""What a job may ask for, what it is told when it may not, and what its settings become."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from foreword.serving.jobs.queue import claim, find, waits
from foreword.serving.jobs.settings import TRIED_EXAMPLES
from foreword.serving.jobs.worker import JobHeartbeat, TrainingRun
from foreword.template import Template
from foreword.training.settings import DEFAULT_LEARNING_RATE
from support.gateways import Gateway, running, tiny_chat_base
from support.stand_ins import END, random_prefix

TEXTS = b'{"source": "a", "target": "b"}\n' * 3
CHATS = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n' * 2


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    limits = {"requests_per_minute": "none", "jobs": "none"}
    with running(tmp_path_factory.mktemp("gateway"), tiny_chat_base(), limits=limits) as found:
        found.store.put(
            "alice/one", random_prefix(found.base, 5, template=Template(separator=" => ", end=END))
        )
        yield found


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> openai.OpenAI:
    return gateway.client("alice")


@pytest.fixture(scope="module")
def texts(client: openai.OpenAI) -> str:
    return client.files.create(file=("texts", TEXTS), purpose="fine-tune").id


@pytest.fixture(scope="module")
def chats(client: openai.OpenAI) -> str:
    return client.files.create(file=("chats", CHATS), purpose="fine-tune").id


def settings(gateway: Gateway, client: openai.OpenAI, **body: Any) -> dict[str, Any]:
    extra = {name: body.pop(name) for name in ("template",) if name in body}
    job = client.fine_tuning.jobs.create(**{"model": "tiny-llama", **body}, extra_body=extra)
    return dict(find(gateway.store.catalogue, "alice", job.id).settings)


def method(**hyperparameters: Any) -> Any:
    return {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}


def test_openais_hyperparameters_become_forewords(
    gateway: Gateway, client: openai.OpenAI, texts: str
) -> None:
    old: Any = {"n_epochs": 3, "batch_size": 2, "learning_rate_multiplier": 0.5}
    for body in ({"hyperparameters": old}, {"method": method(**old)}):
        found = settings(gateway, client, training_file=texts, seed=7, **body)
        rate = DEFAULT_LEARNING_RATE["direct"] * 0.5
        assert (found["epochs"], found["batch_size"], found["learning_rate"]) == (3, 2, rate)
        assert found["seed"] == 7
    auto: Any = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
    assert set(settings(gateway, client, training_file=texts, hyperparameters=auto)) == {
        *("seed", "template", "start")
    }


def test_the_multiplier_is_of_the_parameterizations_own_rate(
    gateway: Gateway, client: openai.OpenAI, texts: str
) -> None:
    asked = method(parameterization="mlp+start", learning_rate_multiplier=2.0, length=7)
    found = settings(gateway, client, training_file=texts, method=asked)
    assert found["learning_rate"] == DEFAULT_LEARNING_RATE["mlp+start"] * 2
    assert found["length"] == 7


def test_the_template_is_the_bases_own_the_chats_or_what_was_asked_for(
    gateway: Gateway, client: openai.OpenAI, texts: str, chats: str
) -> None:
    def template(**body: Any) -> Template:
        return Template.from_json(settings(gateway, client, **body)["template"])

    assert template(training_file=texts) == gateway.base.template
    assert template(training_file=chats).style == "chat"
    asked = template(training_file=texts, template={"style": "chat", "system": "be brief"})
    assert (asked.style, asked.system) == ("chat", "be brief")
    assert template(training_file=texts, template={"separator": " -> "}).separator == " -> "


def test_a_job_can_start_from_a_version_of_a_prefix(
    gateway: Gateway, client: openai.OpenAI, texts: str
) -> None:
    job = client.fine_tuning.jobs.create(model="alice/one", training_file=texts)
    found = find(gateway.store.catalogue, "alice", job.id)
    assert (job.model, found.settings["start"]) == ("alice/one@1", "alice/one@1")
    assert found.settings["length"] == 5
    assert found.settings["template"]["separator"] == " => "


@pytest.mark.parametrize(
    ("model", "given", "said"),
    [
        ("tiny-llama", {"patience": 2}, "give validation_file, or leave hyperparameters.patience out"),
        ("alice/one", {"init": "random"}, "leave hyperparameters.init out, or train from the base model"),
        ("alice/one", {"parameterization": "mlp"}, "take another hyperparameters.parameterization"),
    ],
)
def test_what_does_not_go_together_is_said_in_the_fields_of_the_request(
    client: openai.OpenAI, texts: str, model: str, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=said):
        client.fine_tuning.jobs.create(model=model, training_file=texts, method=method(**given))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"method": method(n_epochs=0)}, "hyperparameters"),
        ({"method": method(n_epochs=1.5)}, "hyperparameters"),
        ({"method": method(n_epochs="many")}, "hyperparameters"),
        ({"method": method(n_epochs=2, steps=5)}, None),
        ({"method": method(learning_rate=0.1, learning_rate_multiplier=2)}, "learning_rate_multiplier"),
        ({"method": method(learning_rate=-1)}, "learning_rate"),
        ({"method": method(steps=10**9)}, "steps"),
        ({"method": method(length=500)}, None),
        ({"method": method(length=0)}, "length"),
        ({"method": method(layers="middle:3")}, None),
        ({"method": method(layers="first:99")}, None),
        ({"method": method(parameterization="magic")}, "parameterization"),
        ({"method": method(init="nonsense")}, None),
        ({"method": method(magic=1)}, "magic"),
        ({"method": {"type": "reinforcement"}}, "type"),
        ({"method": method(), "hyperparameters": {"n_epochs": 1}}, "hyperparameters"),
        ({"suffix": "../x"}, None),
        ({"suffix": "a/b"}, None),
        ({"suffix": "a@1"}, None),
        ({"suffix": ""}, "suffix"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**40}, "seed"),
        ({"metadata": {"a": "x" * 1000}}, "metadata"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "x"}}]}, "integrations"),
        ({"template": {"style": "magic"}}, "style"),
        ({"template": {"style": "raw", "system": "x"}}, None),
        ({"training_file": "file-none"}, "training_file"),
        ({"validation_file": "file-none"}, "validation_file"),
        ({"training_file": "../../etc/passwd"}, "training_file"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_what_a_job_may_not_ask_for_is_named_and_nothing_waits(
    gateway: Gateway, client: openai.OpenAI, texts: str, body: dict[str, Any], param: str | None
) -> None:
    before = len(list(client.fine_tuning.jobs.list()))
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as caught:
        client.post(
            "/fine_tuning/jobs",
            body={"model": "tiny-llama", "training_file": texts, **body},
            cast_to=object,
        )
    assert (param is None) or param in (caught.value.param or "")
    assert len(list(client.fine_tuning.jobs.list())) == before


def test_files_of_two_kinds_and_templates_that_cannot_write_them_are_refused(
    client: openai.OpenAI, texts: str, chats: str
) -> None:
    with pytest.raises(openai.BadRequestError, match="two of a kind"):
        client.fine_tuning.jobs.create(model="tiny-llama", training_file=texts, validation_file=chats)
    with pytest.raises(openai.BadRequestError, match="conversations"):
        client.fine_tuning.jobs.create(model="alice/one", training_file=chats)


def test_a_job_whose_conversations_the_template_refuses_fails_alone_in_the_templates_words(
    tmp_path: Path,
) -> None:
    base = tiny_chat_base()
    refusing = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
    )
    base.tokenizer.chat_template = refusing + base.tokenizer.chat_template

    def line(*roles: str) -> bytes:
        return json.dumps({"messages": [{"role": role, "content": "a"} for role in roles]}).encode() + b"\n"

    bad, good = line("system", "user", "assistant"), line("user", "assistant")
    with running(tmp_path, base) as gateway:

        def create(owner: str, content: bytes) -> str:
            client = gateway.client(owner)
            file = client.files.create(file=("mine.jsonl", content), purpose="fine-tune").id
            hyperparameters = method(steps=1, length=2)
            return client.fine_tuning.jobs.create(
                model="tiny-llama", training_file=file, method=hyperparameters
            ).id

        with pytest.raises(openai.BadRequestError, match="line 2.*no system messages") as caught:
            create("ann", good + bad)
        assert (caught.value.code, caught.value.param) == ("invalid_file", "training_file")
        # Behind what is tried when a job is made, it is found when the job begins.
        behind = good * TRIED_EXAMPLES
        identifiers = {owner: create(owner, behind + end) for owner, end in (("ann", bad), ("bob", good))}
        database, configuration = gateway.store.database, gateway.server.configuration
        jobs = claim(database, "worker", 2)
        assert {job.id for job in jobs} == set(identifiers.values())
        heartbeat = JobHeartbeat(database, "worker", [job.id for job in jobs], configuration)
        TrainingRun(configuration, gateway.store, "worker", heartbeat).train(base, jobs)
        ann = gateway.client("ann").fine_tuning.jobs.retrieve(identifiers["ann"])
        assert (ann.status, ann.error and ann.error.code) == ("failed", "TemplateRefuses")
        assert ann.error is not None
        assert "example 20 ('mine.jsonl', line 21): the base's chat template refuses" in ann.error.message
        assert "no system messages" in ann.error.message
        assert gateway.client("bob").fine_tuning.jobs.retrieve(identifiers["bob"]).status == "succeeded"


def test_the_day_that_a_chat_template_writes_is_that_of_the_jobs_making(tmp_path: Path) -> None:
    base = tiny_chat_base()
    base.tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + base.tokenizer.chat_template
    with running(tmp_path, base) as gateway:
        client = gateway.client("alice")
        file = client.files.create(file=("mine.jsonl", CHATS), purpose="fine-tune").id
        made = Template.from_json(settings(gateway, client, training_file=file)["template"])
        assert made == made.dated(base.tokenizer)
        assert made.date is not None


def test_a_file_that_a_job_needs_stays(gateway: Gateway, client: openai.OpenAI) -> None:
    file = client.files.create(file=("x", TEXTS), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="tiny-llama", training_file=file.id)
    with pytest.raises(openai.ConflictError) as caught:
        client.files.delete(file.id)
    assert caught.value.code == "file_in_use"
    client.fine_tuning.jobs.cancel(job.id)
    assert client.files.delete(file.id).deleted


def test_jobs_and_events_come_in_pages_and_to_their_owner_only(gateway: Gateway, texts: str) -> None:
    carol, dave = gateway.client("carol"), gateway.client("dave")
    file = carol.files.create(file=("x", TEXTS), purpose="fine-tune").id
    ids = [carol.fine_tuning.jobs.create(model="tiny-llama", training_file=file).id for _ in range(5)]
    assert [job.id for job in carol.fine_tuning.jobs.list(limit=2)] == ids[::-1]
    carol.fine_tuning.jobs.cancel(ids[0])
    told = [event.message for event in carol.fine_tuning.jobs.list_events(ids[0], limit=1)]
    assert told == ["the job was cancelled", "the job waits for its turn"]
    assert list(dave.fine_tuning.jobs.list()) == []
    jobs = dave.fine_tuning.jobs
    for call in (jobs.retrieve, jobs.cancel, jobs.list_events, jobs.checkpoints.list):
        with pytest.raises(openai.NotFoundError) as caught:
            call(ids[1])  # type: ignore[operator]
        assert caught.value.code == "job_not_found"
    assert carol.fine_tuning.jobs.retrieve(ids[1]).status == "queued"
    assert waits(gateway.store.catalogue)
