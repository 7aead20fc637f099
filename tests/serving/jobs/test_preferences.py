"""Jobs on preferences, through OpenAI's client: files, hyperparameters, results, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import torch

from foreword import BaseModel, train
from foreword.examples import Preference
from foreword.serving.config import Configuration
from foreword.serving.jobs import queue, uploads
from foreword.serving.jobs.worker import JobHeartbeat, TrainingRun
from support.gateways import Gateway, running
from support.saved_bases import CHAT_TEMPLATE
from support.stand_ins import byte_tokenizer, random_prefix, tiny_llama

PAIRS = [Preference(f"{a}{b}", "yes yes", "no no no") for a in "abcd" for b in "efgh"]
QUICK: dict[str, Any] = {"steps": 8, "length": 3, "batch_size": 4}


def lines(*records: dict[str, Any]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


TEXTS = lines(*({"prompt": p.source, "chosen": p.chosen, "rejected": p.rejected} for p in PAIRS))
CHATS = lines(
    *(
        {
            "input": {
                "messages": [{"role": "user", "content": p.source}],
                "tools": [],
                "parallel_tool_calls": True,
            },
            "preferred_output": [{"role": "assistant", "content": p.chosen}],
            "non_preferred_output": [{"role": "assistant", "content": p.rejected}],
        }
        for p in PAIRS
    )
)
EXAMPLES = lines(*({"source": p.source, "target": p.chosen} for p in PAIRS))


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    base = BaseModel(tiny_llama(max_position_embeddings=256), tokenizer, name="tiny-llama")
    limits = {"requests_per_minute": "none", "jobs": "none"}
    with running(tmp_path_factory.mktemp("gateway"), base, limits=limits) as found:
        found.store.as_owner("alice").put("alice/one", random_prefix(base, 3, template=base.template))
        yield found


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> openai.OpenAI:
    return gateway.client("alice")


def send(client: openai.OpenAI, content: bytes = TEXTS) -> str:
    return client.files.create(file=("pairs.jsonl", content), purpose="fine-tune").id


def create(client: openai.OpenAI, file: str, settings: dict[str, Any] = QUICK, **more: Any) -> Any:
    method = {"type": "dpo", "dpo": {"hyperparameters": settings}}
    body: Any = {"model": "tiny-llama", "training_file": file, "method": method, **more}
    return client.fine_tuning.jobs.create(**body)


def work(gateway: Gateway) -> list[str]:
    """Do the run that comes next; the jobs in it."""
    jobs = queue.claim(gateway.store.database, "w", 8)
    names = [one.id for one in jobs]
    heartbeat = JobHeartbeat(gateway.store.database, "w", names, Configuration())
    TrainingRun(Configuration(), gateway.store, "w", heartbeat).train(gateway.base, jobs)
    return names


def test_a_job_ends_in_the_prefix_that_train_makes(gateway: Gateway, client: openai.OpenAI) -> None:
    job = create(client, send(client), {**QUICK, "beta": 0.3}, validation_file=send(client), suffix="polite")
    assert job.method.type == "dpo"
    assert job.method.dpo.hyperparameters.beta == 0.3
    assert job.method.dpo.hyperparameters.n_epochs == "auto"
    assert work(gateway) == [job.id]
    done = client.fine_tuning.jobs.retrieve(job.id)
    assert (done.status, done.fine_tuned_model) == ("succeeded", "alice/polite@1")
    assert done.trained_tokens
    expected = train(gateway.base, PAIRS, dev=PAIRS, method="dpo", beta=0.3, **QUICK)
    prefix = gateway.store.get("alice/polite")
    for name, tensor in expected.tensors.items():
        torch.testing.assert_close(prefix.tensors[name], tensor, rtol=1e-3, atol=1e-4)
    assert prefix.report["method"] == "dpo"
    (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert checkpoint.metrics.full_valid_loss == pytest.approx(prefix.origin.dev_loss)
    extra = checkpoint.metrics.model_extra or {}
    assert extra["full_valid_reward_accuracy"] == pytest.approx(prefix.report["dev_reward_accuracy"])
    told = [event for event in client.fine_tuning.jobs.list_events(job.id, limit=100).data if event.data]
    names = {"train_reward_accuracy", "train_reward_margin", "full_valid_reward_accuracy", "full_valid_loss"}
    assert all(names <= set(dict(event.data)) for event in told if dict(event.data)["step"])  # type: ignore[call-overload]
    assert any("validation reward accuracy=" in event.message for event in told)


def test_conversations_are_trained_behind_the_chat_template(gateway: Gateway, client: openai.OpenAI) -> None:
    job = create(client, send(client, CHATS), suffix="chat")
    assert work(gateway) == [job.id]
    assert client.fine_tuning.jobs.retrieve(job.id).status == "succeeded"
    assert gateway.store.get("alice/chat").template.style == "chat"
    answer = client.chat.completions.create(
        model="alice/chat", messages=[{"role": "user", "content": "ae"}], max_tokens=3
    )
    assert answer.choices


def test_a_job_can_start_from_a_prefix_which_then_is_the_reference(
    gateway: Gateway, client: openai.OpenAI
) -> None:
    job = create(client, send(client), {"steps": 1}, model="alice/one", validation_file=send(client))
    work(gateway)
    events = client.fine_tuning.jobs.list_events(job.id, limit=100).data
    (first,) = [dict(e.data) for e in events if e.data and dict(e.data)["step"] == 0]  # type: ignore[call-overload]
    assert first["full_valid_reward_margin"] == pytest.approx(0, abs=1e-5)


def test_jobs_of_owners_with_equal_settings_are_one_run(gateway: Gateway, client: openai.OpenAI) -> None:
    other = gateway.client("bob")
    jobs = [create(one, send(one), suffix="shared").id for one in (client, other)]
    supervised: Any = {"type": "supervised", "supervised": {"hyperparameters": QUICK}}
    apart = client.fine_tuning.jobs.create(
        model="tiny-llama", training_file=send(client, EXAMPLES), method=supervised
    ).id
    assert sorted(work(gateway)) == sorted(jobs)
    assert work(gateway) == [apart]


def test_auto_stands_for_the_defaults(gateway: Gateway, client: openai.OpenAI) -> None:
    auto = dict.fromkeys(("beta", "n_epochs", "batch_size", "learning_rate_multiplier"), "auto")
    job = create(client, send(client), auto)
    settings = queue.find(gateway.store.database, "alice", job.id).settings
    assert set(settings) == {"seed", "method", "template", "start"}
    client.fine_tuning.jobs.cancel(job.id)


@pytest.mark.parametrize(
    ("content", "style"),
    [(TEXTS, "preferences"), (CHATS, "chat-preferences"), (CHATS * 40, "chat-preferences")],
)
def test_a_file_is_known_for_what_it_holds(
    gateway: Gateway, client: openai.OpenAI, content: bytes, style: str
) -> None:
    identifier = send(client, content)
    record = uploads.find(gateway.store.database, "alice", identifier)
    assert (record.style, record.purpose) == (style, "fine-tune")
    assert record.examples == content.count(b"\n")
    assert identifier in {one.id for one in client.files.list(purpose="fine-tune").data}


def test_a_job_names_the_fields_of_its_file(gateway: Gateway, client: openai.OpenAI) -> None:
    """Of a JSON array whose fields are of no known form."""
    rows = [{"q": p.source, "good": p.chosen, "bad": p.rejected} for p in PAIRS]
    identifier = send(client, json.dumps(rows).encode())
    assert uploads.find(gateway.store.database, "alice", identifier).style == "records"
    with pytest.raises(openai.BadRequestError, match="no preference; found 'q', 'good', 'bad'"):
        create(client, identifier)
    with pytest.raises(openai.BadRequestError, match="fields names 'source', but preferences take"):
        create(client, identifier, {**QUICK, "fields": {"source": "q"}})
    fields = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    job = create(client, identifier, {**QUICK, "fields": fields}, suffix="mapped")
    assert work(gateway) == [job.id]
    assert client.fine_tuning.jobs.retrieve(job.id).status == "succeeded"
    told = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=100).data]
    assert "training file: read 16 preferences: pairs of answers" in told


def test_preferences_are_no_questions_about_a_document(client: openai.OpenAI) -> None:
    document = client.files.create(file=("a.txt", b"The mug is blue."), purpose="user_data").id
    method: Any = {"type": "document"}
    with pytest.raises(openai.BadRequestError, match="validation_file is a file of preferences; expected"):
        client.fine_tuning.jobs.create(
            model="tiny-llama", training_file=document, validation_file=send(client), method=method
        )


def test_a_call_of_a_tool_is_refused_where_the_base_has_none(client: openai.OpenAI) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    record = json.loads(CHATS.splitlines()[0])
    record["input"]["tools"] = [tool]
    record["preferred_output"] = [{"role": "assistant", "tool_calls": [call]}]
    with pytest.raises(openai.BadRequestError, match="line 1.*has no tools: it leaves out the tool 'add'"):
        create(client, send(client, lines(record)))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"preferred_output": [{"role": "assistant", "content": "no no no"}]}, "are equal"),
        ({"preferred_output": []}, "preferred_output has no messages"),
        ({"input": None}, "no messages are in 'input'"),
    ],
)
def test_a_bad_line_is_named_at_the_upload(
    client: openai.OpenAI, record: dict[str, Any], message: str
) -> None:
    bad = {**json.loads(CHATS.splitlines()[0]), **record}
    with pytest.raises(openai.BadRequestError, match=f"line 17: .*{message}"):
        send(client, CHATS + lines(bad))


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"training_file": EXAMPLES}, "training_file", "training_file holds examples, and the method dpo"),
        ({"validation_file": EXAMPLES}, "validation_file", "take the method supervised"),
        ({"validation_file": CHATS}, "validation_file", "one file has conversations"),
        ({"method": {"type": "supervised"}}, "training_file", "holds preferences, and the method supervised"),
        ({"method": None}, "training_file", "take the method dpo"),
        ({"hyperparameters": {"n_epochs": 2}}, "hyperparameters", "no meaning for the method dpo"),
        ({"method": {"type": "dpo", "supervised": {}}}, "method.supervised", "no meaning for the method dpo"),
        (
            {"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0}}}},
            "beta",
            "Expected a value > 0",
        ),
        (
            {"method": {"type": "dpo", "dpo": {"hyperparameters": {"reduction": "token"}}}},
            "reduction",
            "reduction",
        ),
        (
            {"method": {"type": "supervised", "supervised": {"hyperparameters": {"beta": 0.1}}}},
            "beta",
            "beta",
        ),
        ({"method": {"type": "document", "document": {}}}, "training_file", "is no document"),
    ],
)
def test_what_does_not_belong_together_is_refused_in_the_requests_words(
    client: openai.OpenAI, body: dict[str, Any], param: str, message: str
) -> None:
    files = {name: send(client, value) for name, value in body.items() if isinstance(value, bytes)}
    with pytest.raises(openai.BadRequestError, match=message) as refused:
        create(client, send(client), **(body | files))
    assert param in str(refused.value.param)
