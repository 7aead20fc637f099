"""What owners used is counted by day, by any number of servers at once, and said to those whose it is."""

import threading

import pytest

from foreword.errors import NotAllowed, StoreUnavailable, UnknownPrefix, UsageError
from foreword.store.usage import NOBODY, Meter, add, sample_stored_bytes, today


def test_servers_add_to_one_row_and_none_is_lost(store, place):
    def serve():
        opened, meter = place.open(), Meter()
        for _ in range(10):
            meter.add("alice", requests=1, prompt_tokens=7)
            meter.add("alice", completion_tokens=3)
            meter.add(None, requests=1)
            meter.flush(opened.database)

    threads = [threading.Thread(target=serve) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.database.write(lambda connection: add(connection, "alice", training_steps=5, trained_tokens=900))
    everybody = {row.owner: row for row in store.usage()}
    alice = everybody["alice"]
    assert (alice.day, alice.requests, alice.prompt_tokens, alice.completion_tokens) == (
        today(),
        40,
        280,
        120,
    )
    assert (alice.training_steps, alice.trained_tokens, alice.stored_bytes) == (5, 900, 0)
    assert everybody[NOBODY].requests == 40


def test_what_could_not_be_written_stays_counted(sqlite_store, monkeypatch):
    meter = Meter()
    meter.add("alice", requests=2)

    def gone(*_, **__):
        raise StoreUnavailable("gone")

    with monkeypatch.context() as patched:
        patched.setattr(sqlite_store.database, "write", gone)
        with pytest.raises(StoreUnavailable):
            meter.flush(sqlite_store.database)
    meter.add("alice", requests=1)
    meter.flush(sqlite_store.database)
    meter.flush(sqlite_store.database)
    assert [row.requests for row in sqlite_store.usage("alice")] == [3]


def test_the_most_that_was_stored_on_a_day_is_kept(store, prefixes):
    big, small = prefixes(1, length=9), prefixes(2)
    for prefix in (small, big):
        store.put("alice/x", prefix)
    store.put("bob/x", small)
    sample_stored_bytes(store.database)
    store.delete("alice/x", all_versions=True)
    store.collect_garbage(grace=0)
    sample_stored_bytes(store.database)
    found = {row.owner: row.stored_bytes for row in store.usage()}
    sizes = [len(prefix.to_bytes()) for prefix in (big, small)]
    assert found == {"alice": sum(sizes), "bob": sizes[1]}


def test_days_and_pages(sqlite_store):
    def fill(connection):
        for day in ("2026-01-01", "2026-01-02", "2026-01-03"):
            for owner in ("alice", "bob"):
                add(connection, owner, day, requests=1)

    sqlite_store.database.write(fill)
    chosen = sqlite_store.usage("bob", start="2026-01-02", end="2026-01-02")
    assert [(row.day, row.owner) for row in chosen] == [("2026-01-02", "bob")]
    rest = sqlite_store.usage(after="2026-01-02/alice", limit=2)
    assert [(row.day, row.owner) for row in rest] == [("2026-01-02", "bob"), ("2026-01-03", "alice")]
    for wrong in ("yesterday", "2026-1-1", "2026-02-30", "20260101"):
        with pytest.raises(UsageError, match="such as 2026-01-31"):
            sqlite_store.usage(start=wrong)


def test_usage_is_said_to_its_owner_and_to_administrators(sqlite_store):
    sqlite_store.database.write(lambda connection: add(connection, "alice", requests=1))
    alice = sqlite_store.as_owner("alice")
    assert [row.requests for row in alice.usage("alice")] == [1]
    with pytest.raises(NotAllowed):
        alice.usage()
    with pytest.raises(UnknownPrefix):
        alice.usage("bob")


def test_forgetting_takes_usage_and_what_is_counted_still(store, tmp_path, prefixes):
    import json
    import zipfile

    meter = Meter()
    store.put("alice/x", prefixes(1))
    store.database.write(lambda connection: add(connection, "alice", "2026-01-01", requests=4))
    store.export_owner("alice", tmp_path / "alice.zip")
    with zipfile.ZipFile(tmp_path / "alice.zip") as archive:
        exported = json.loads(archive.read("manifest.json"))
    assert [(row["day"], row["requests"]) for row in exported["usage"]] == [("2026-01-01", 4)]
    meter.add("alice", requests=1)
    assert store.forget("alice").usage_days == 1
    meter.flush(store.database)
    assert store.usage("alice") == ()
    store.import_owner(tmp_path / "alice.zip")  # whoever comes back begins anew
    assert store.usage("alice") == ()
    meter.add("alice", requests=1)
    meter.flush(store.database)
    assert [row.requests for row in store.usage("alice")] == [1]


def test_what_was_written_though_the_answer_was_lost_is_not_added_again(store, monkeypatch):
    meter, write = Meter(), store.database.write
    meter.add("alice", requests=2)

    def lost(*given, **more):
        write(*given, **more)
        raise StoreUnavailable("the connection broke behind the commit")

    with monkeypatch.context() as patched:
        patched.setattr(store.database, "write", lost)
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                meter.flush(store.database)
            meter.add("alice", requests=1, prompt_tokens=5)
    meter.flush(store.database)
    meter.flush(store.database)
    assert [(row.requests, row.prompt_tokens) for row in store.usage("alice")] == [(4, 10)]


def test_an_owner_who_is_forgotten_while_storage_is_noted_has_no_usage_again(store, prefixes, monkeypatch):
    store.put("alice/x", prefixes(1))
    store.put("bob/x", prefixes(2))
    rows = store.database.rows

    def forgotten_then(query):
        found = rows(query)
        monkeypatch.undo()
        store.forget("alice")
        return found

    monkeypatch.setattr(store.database, "rows", forgotten_then)
    sample_stored_bytes(store.database)
    assert [row.owner for row in store.usage()] == ["bob"]
