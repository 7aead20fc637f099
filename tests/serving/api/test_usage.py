"""What owners use over HTTP is counted, and told to them and administrators; a server looks after its store."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from foreword.errors import StoreUnavailable
from foreword.serving.upkeep import Upkeep
from foreword.store.schema import blob, now
from foreword.store.usage import add, today
from support.gateways import Gateway, running, tiny_chat_base
from support.stand_ins import random_prefix


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    limits = {"stored_bytes": 30_000}
    with running(tmp_path_factory.mktemp("usage"), tiny_chat_base(), limits=limits) as found:
        yield found


def upkeep(gateway: Gateway, days: float | None = 30.0) -> Upkeep:
    return Upkeep(gateway.store, gateway.server.usage, verify_days=days)


def ask(gateway: Gateway, key: str, **query: str) -> httpx.Response:
    return httpx.get(f"{gateway.url}/v1/usage", params=query, headers={"Authorization": f"Bearer {key}"})


def test_what_a_request_used_is_in_the_bill(gateway: Gateway) -> None:
    key = gateway.key("alice")
    client = gateway.client(key=key)
    used = [
        client.completions.create(model="tiny-llama", prompt="abcd", max_tokens=3).usage for _ in range(2)
    ]
    upkeep(gateway).stop()  # as at the end of a server
    (row,) = ask(gateway, key).json()["data"]
    assert (row["owner"], row["day"], row["requests"]) == ("alice", today(), 2)
    assert row["prompt_tokens"] == sum(one.prompt_tokens for one in used if one)
    assert row["completion_tokens"] == sum(one.completion_tokens for one in used if one)
    assert ask(gateway, key, owner="alice").json()["data"] == [row]


def test_administrators_read_pages_of_everybodys(gateway: Gateway) -> None:
    def fill(connection: object) -> None:
        for owner in ("carol", "dora"):
            add(connection, owner, "2026-01-01", requests=1)  # type: ignore[arg-type]

    gateway.store.database.write(fill)
    key = gateway.key(None, "admin")
    first = ask(gateway, key, end="2026-01-31", limit="1").json()
    assert ([row["owner"] for row in first["data"]], first["has_more"]) == (["carol"], True)
    second = ask(gateway, key, end="2026-01-31", limit="1", after=first["next"]).json()
    assert ([row["owner"] for row in second["data"]], second["has_more"]) == (["dora"], False)
    wrong = ask(gateway, key, start="last week")
    assert (wrong.status_code, "2026-01-31" in wrong.json()["error"]["message"]) == (400, True)


def test_another_owners_usage_is_not_told(gateway: Gateway) -> None:
    for owner in ("dora", "nobody", "../x"):
        answer = ask(gateway, gateway.key("bob"), owner=owner)
        assert answer.status_code in (400, 403)
        assert "dora" not in answer.text


def test_another_owners_storage_is_not_told(gateway: Gateway) -> None:
    for length in (1, 9, 90):
        answer = httpx.post(
            f"{gateway.url}/v1/prefixes",
            headers={"Authorization": f"Bearer {gateway.key('alice')}"},
            data={"name": "bob/x"},
            files={"file": random_prefix(gateway.base, length).to_bytes()},
        )
        assert answer.status_code == 403
        assert "bytes" not in answer.text


def test_upkeep_does_what_is_due_once_for_all_servers(gateway: Gateway) -> None:
    store = gateway.store
    version = store.put("erin/x", random_prefix(gateway.base, 3))
    store.put("erin/gone", random_prefix(gateway.base, 4))
    store.delete("erin/gone@1")
    old = blob.update().values(checked=now(40 * 86400.0), touched=now(40 * 86400.0))
    store.database.write(lambda connection: connection.execute(old))
    first, second = upkeep(gateway), upkeep(gateway)
    first.do_tasks()
    second.do_tasks()
    assert (first.checked.files, second.checked.files) == (first.checked.files, 0)
    assert first.checked.files >= 1
    assert first.measurements()["damaged"] == 0
    (row,) = store.usage("erin")
    sizes = [len(random_prefix(gateway.base, length).to_bytes()) for length in (3, 4)]
    assert row.stored_bytes == sum(sizes)  # noted before the deleted one was removed
    assert [found.digest for found in store.database.rows(blob.select())] == [version.digest]


def test_what_can_not_be_written_at_once_is_written_later(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise StoreUnavailable("gone")

    gateway.server.usage.add("fred", requests=1)
    with monkeypatch.context() as patched:
        patched.setattr(gateway.store.database, "write", gone)
        upkeep(gateway).stop()  # logs it, and does not raise
    thread = upkeep(gateway)
    thread.start()
    thread.stop()
    assert not thread.is_alive()
    assert [row.requests for row in gateway.store.usage("fred")] == [1]
