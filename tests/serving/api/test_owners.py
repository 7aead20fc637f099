"""Owners: whose files and prefixes are whose, what a key may do, and how much of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from foreword import Prefix
from foreword.serving.config import Limits
from foreword.serving.errors import Refused
from foreword.serving.rate_limits import Limiter
from support.gateways import Gateway, running, tiny_chat_base
from support.refusals import error
from support.stand_ins import random_prefix

EXAMPLES = b'{"source": "a", "target": "b"}\n' * 3
FILE = ("mine.jsonl", EXAMPLES)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running(tmp_path_factory.mktemp("gateway"), tiny_chat_base()) as found:
        yield found


def test_a_file_goes_up_comes_back_and_is_gone(gateway: Gateway) -> None:
    client = gateway.client("alice")
    created = client.files.create(file=FILE, purpose="fine-tune")
    assert (created.bytes, created.filename, created.status) == (len(EXAMPLES), "mine.jsonl", "processed")
    assert (created.status_details or "").startswith("read 3 examples: source and target")
    assert client.files.retrieve(created.id) == created.model_copy(update={"status_details": None})
    assert client.files.content(created.id).read() == EXAMPLES
    assert created.id in [file.id for file in client.files.list()]
    assert client.files.delete(created.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(created.id)
    assert created.id not in [file.id for file in client.files.list()]


def test_files_come_in_pages_newest_first(gateway: Gateway) -> None:
    client = gateway.client("pages")
    ids = [client.files.create(file=FILE, purpose="fine-tune").id for _ in range(5)]
    assert [file.id for file in client.files.list(limit=2)] == ids[::-1]
    assert [file.id for file in client.files.list(limit=2, order="asc")] == ids
    first = client.files.list(limit=2)
    assert (len(first.data), first.has_more) == (2, True)


def test_a_field_of_an_upload_that_would_have_no_effect_is_refused(gateway: Gateway) -> None:
    client = gateway.client("expiring")
    with pytest.raises(openai.BadRequestError, match=r"Unknown parameter: 'expires_after\[\w+\]'") as refused:
        client.files.create(
            file=FILE, purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600}
        )
    assert (refused.value.code, refused.value.param) == ("unknown_parameter", "expires_after")
    assert not client.files.list().data


@pytest.mark.parametrize(("path", "known"), [("/v1/files", "purpose"), ("/v1/prefixes", "name")])
@pytest.mark.parametrize("field", ["note", "{known}[deep]"])
def test_a_form_with_an_unknown_field_is_refused(gateway: Gateway, path: str, known: str, field: str) -> None:
    content = random_prefix(gateway.base, 3).to_bytes() if known == "name" else EXAMPLES
    refused = httpx.post(
        f"{gateway.url}{path}",
        headers={"Authorization": f"Bearer {gateway.key('forms')}"},
        data={known: "fine-tune", field.format(known=known): "x"},
        files={"file": ("a.jsonl", content)},
    )
    assert error(refused, 400)["code"] == "unknown_parameter"
    assert not gateway.client("forms").files.list().data
    assert "forms/fine-tune" not in [model.id for model in gateway.client("forms").models.list()]


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "a\\..\\b", "x" * 1000, "größe.jsonl", "..", "nul\0"]
)
def test_a_files_name_is_shown_and_used_for_nothing(gateway: Gateway, tmp_path: Path, name: str) -> None:
    client = gateway.client("alice")
    created = client.files.create(file=(name, EXAMPLES), purpose="fine-tune")
    assert len(created.filename) <= 256
    response = client.files.with_raw_response.content(created.id)
    assert response.headers["content-disposition"] == f'attachment; filename="{created.id}.jsonl"'
    bad = httpx.post(
        f"{gateway.url}/v1/files",
        headers={"Authorization": f"Bearer {client.api_key}"},
        data={"purpose": "fine-tune"},
        files={"file": (name, b"{")},
    )
    assert bad.status_code == 400
    assert "line 1" in bad.json()["error"]["message"]


def test_other_peoples_files_do_not_exist(gateway: Gateway) -> None:
    alice, bob = gateway.client("alice"), gateway.client("bob")
    created = alice.files.create(file=FILE, purpose="fine-tune")
    assert [file.id for file in bob.files.list()] == []
    for call in (bob.files.retrieve, bob.files.content, bob.files.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            call(created.id)
        assert caught.value.code == "file_not_found"
    with pytest.raises(openai.NotFoundError) as caught:
        bob.fine_tuning.jobs.create(model="tiny-llama", training_file=created.id)
    assert caught.value.param == "training_file"
    assert alice.files.retrieve(created.id).id == created.id


def test_shared_and_public_prefixes_can_be_used_and_not_changed(gateway: Gateway) -> None:
    for name in ("shared", "public", "private"):
        gateway.store.put(f"carol/{name}", random_prefix(gateway.base, 3))
    gateway.store.share("carol/shared", "dave")
    gateway.store.publish("carol/public")
    dave, other = gateway.client("dave"), gateway.client("erin")
    assert [m.id for m in dave.models.list()][1:] == ["carol/public", "carol/shared"]
    assert [m.id for m in other.models.list()][1:] == ["carol/public"]
    text = dave.completions.create(model="carol/shared", prompt="x", temperature=0, max_tokens=4)
    assert len(text.choices[0].text) == 4
    with pytest.raises(openai.NotFoundError):
        other.completions.create(model="carol/shared", prompt="x")
    with pytest.raises(openai.PermissionDeniedError):
        dave.models.delete("carol/shared")
    assert gateway.store.get("carol/shared")


def test_a_readers_key_reads(gateway: Gateway) -> None:
    gateway.store.put("fred/one", random_prefix(gateway.base, 3))
    reader = gateway.client("fred", role="reader")
    assert reader.completions.create(model="fred/one", prompt="x", max_tokens=2).choices
    assert [file.id for file in reader.files.list()] == []
    with pytest.raises(openai.PermissionDeniedError):
        reader.files.create(file=FILE, purpose="fine-tune")
    with pytest.raises(openai.PermissionDeniedError):
        reader.fine_tuning.jobs.create(model="tiny-llama", training_file="file-x")
    with pytest.raises(openai.PermissionDeniedError):
        reader.models.delete("fred/one")


def test_an_administrators_key_sees_all_prefixes_and_owns_nothing(gateway: Gateway) -> None:
    gateway.store.put("gina/one", random_prefix(gateway.base, 3))
    admin = gateway.client(key=gateway.key(None, "admin"))
    assert "gina/one" in [model.id for model in admin.models.list()]
    assert admin.completions.create(model="gina/one", prompt="x", max_tokens=2).choices
    with pytest.raises(openai.PermissionDeniedError, match="has none"):
        admin.files.create(file=FILE, purpose="fine-tune")


def test_a_prefix_file_goes_up_is_described_and_comes_down_the_same(gateway: Gateway) -> None:
    prefix = random_prefix(gateway.base, 4, seed=11)
    headers = {"Authorization": f"Bearer {gateway.key('alice')}"}
    with httpx.Client(base_url=gateway.url, headers=headers) as http:
        put = http.post("/v1/prefixes", data={"name": "up"}, files={"file": prefix.to_bytes()}).json()
        assert (put["id"], put["digest"], put["length"]) == ("alice/up@1", prefix.digest, 4)
        again = http.post("/v1/prefixes", data={"name": "alice/up"}, files={"file": prefix.to_bytes()}).json()
        assert again["id"] == "alice/up@1"
        assert http.get("/v1/prefixes/alice/up@1").json() == put
        down = http.get("/v1/prefixes/alice/up/content").content
        assert Prefix.from_bytes(down) == prefix
        assert http.delete("/v1/prefixes/alice/up").json()["deleted"] is True
        assert http.get("/v1/prefixes/alice/up").status_code == 404


def test_deleting_a_model_takes_the_version_that_is_named(gateway: Gateway) -> None:
    for seed in range(2):
        gateway.store.put("henry/one", random_prefix(gateway.base, 3, seed=seed))
    client = gateway.client("henry")
    assert client.models.delete("henry/one@2").id == "henry/one@2"
    assert client.models.retrieve("henry/one").foreword["digest"] == gateway.store.get("henry/one@1").digest  # type: ignore[attr-defined]
    client.models.delete("henry/one")
    assert [model.id for model in client.models.list()] == ["tiny-llama", "carol/public"]


def test_what_is_done_to_files_is_in_the_audit_table(gateway: Gateway) -> None:
    client = gateway.client("ivan")
    created = client.files.create(file=FILE, purpose="fine-tune")
    client.files.delete(created.id)
    told = [(entry.action, entry.target) for entry in gateway.store.audit("ivan")]
    assert ("upload", created.id) in told
    assert ("delete upload", created.id) in told
    assert "key" in gateway.store.audit("ivan")[0].who


def test_forgetting_an_owner_takes_files_and_jobs(gateway: Gateway) -> None:
    client = gateway.client("judy")
    created = client.files.create(file=FILE, purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="tiny-llama", training_file=created.id)
    folder = gateway.store.job_folder() / f"@{job.id}"
    folder.mkdir(parents=True)
    (folder / "step-0000001.checkpoint").write_bytes(b"x")
    report = gateway.store.forget("judy")
    assert (report.uploads, report.jobs, report.checkpoints) == (1, 1, 1)
    assert not folder.exists()
    fresh = gateway.client("judy")
    assert [file.id for file in fresh.files.list()] == []
    assert [found.id for found in fresh.fine_tuning.jobs.list()] == []


# -- limits ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    limits = {"requests_per_minute": 3, "tokens_per_minute": 50, "jobs": 1, "stored_bytes": 35_000}
    with running(tmp_path_factory.mktemp("limited"), tiny_chat_base(), limits=limits) as found:
        yield found


def refused(call: object) -> openai.RateLimitError:
    with pytest.raises(openai.RateLimitError) as caught:
        call()  # type: ignore[operator]
    assert int(caught.value.response.headers["retry-after"]) >= 1
    return caught.value


def test_requests_a_minute_are_counted_for_each_key(limited: Gateway) -> None:
    first, second = limited.client("alice"), limited.client("alice")
    for _ in range(3):
        first.models.list()
    assert refused(first.models.list).code == "requests_per_minute_exceeded"
    assert second.models.list().data


def test_tokens_a_minute_are_those_of_prompt_and_answer(limited: Gateway) -> None:
    client = limited.client("bob")
    client.completions.create(model="tiny-llama", prompt="x" * 45, max_tokens=5)
    caught = refused(lambda: client.completions.create(model="tiny-llama", prompt="x" * 20, max_tokens=1))
    assert caught.code == "tokens_per_minute_exceeded"


def test_stored_bytes_and_unfinished_jobs_are_an_owners(limited: Gateway) -> None:
    client = limited.client("carol")
    created = client.files.create(file=FILE, purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="tiny-llama", training_file=created.id)
    other = limited.client("carol")
    again = refused(lambda: other.fine_tuning.jobs.create(model="tiny-llama", training_file=created.id))
    assert again.code == "jobs_exceeded"
    more = refused(lambda: other.files.create(file=("x", EXAMPLES * 500), purpose="fine-tune"))
    assert more.code == "storage_limit_exceeded"
    client.fine_tuning.jobs.cancel(job.id)
    assert limited.client("carol").fine_tuning.jobs.create(model="tiny-llama", training_file=created.id)


def test_a_prefix_counts_among_stored_bytes(limited: Gateway) -> None:
    response = httpx.post(
        f"{limited.url}/v1/prefixes",
        headers={"Authorization": f"Bearer {limited.key('dora')}"},
        data={"name": "big"},
        files={"file": random_prefix(limited.base, 100).to_bytes()},
    )
    assert (response.status_code, response.json()["error"]["code"]) == (429, "storage_limit_exceeded")
    assert len(limited.store.list(owner="dora")) == 0


def test_a_bucket_fills_again_with_time() -> None:
    now = 0.0
    limiter = Limiter(clock=lambda: now)
    limits = Limits(requests_per_minute=2, tokens_per_minute=60)
    limiter.admit("a", limits)
    limiter.admit("a", limits)
    with pytest.raises(Refused) as caught:
        limiter.admit("a", limits)
    assert caught.value.headers == {"retry-after": "30"}
    limiter.admit("b", limits)
    now = 29.0
    with pytest.raises(Refused):
        limiter.admit("a", limits)
    now = 30.0
    limiter.admit("a", limits)
    now = 200.0
    limiter.charge_refused("a", limits, 90)
    with pytest.raises(Refused) as caught:
        limiter.admit("a", limits)
    assert caught.value.headers == {"retry-after": "30"}
    now = 230.0
    limiter.admit("a", limits)
    limiter.admit("a", Limits(None, None))


def test_single_keys_can_have_limits_of_their_own(tmp_path: Path) -> None:
    with running(tmp_path, tiny_chat_base(), limits={"requests_per_minute": 1}) as gateway:
        key = gateway.store.create_key("alice", "owner")
        gateway.server.configuration.key_limits[key.record.id] = Limits(requests_per_minute=3)  # type: ignore[index]
        client = gateway.client(key=key.secret)
        for _ in range(3):
            client.models.list()
        refused(client.models.list)


def test_without_keys_everything_is_the_local_owners(tmp_path: Path) -> None:
    with running(tmp_path, tiny_chat_base(), keys=False) as gateway:
        gateway.store.put("somebody/one", random_prefix(gateway.base, 3))
        client = gateway.client()
        assert [m.id for m in client.models.list()] == ["tiny-llama", "somebody/one"]
        client.files.create(file=FILE, purpose="fine-tune")
        assert [
            u.owner
            for u in gateway.store.catalogue.rows(__import__("sqlalchemy").text("SELECT owner FROM upload"))
        ] == ["local"]  # type: ignore[arg-type]
