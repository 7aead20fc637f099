"""Damaged files, full disks, vanished databases: said clearly, and nothing half done."""

import contextlib
import resource
import subprocess
import sys
import textwrap

import pytest

from foreword.errors import (
    AlteredBlob,
    CannotWrite,
    DamagedBlob,
    MissingBlob,
    StoreUnavailable,
    UnknownStore,
    UsageError,
)
from foreword.store import PrefixStore
from support.stores import run_sql


def only_file(place):
    (path,) = place.blobs.rglob("*.prefix")
    return path


def test_altered_file_is_never_returned_and_verify_names_it(store, place, prefixes):
    store.put("a/x", prefixes(1))
    path = only_file(place)
    store.put("a/good", prefixes(2))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for _ in range(2):
        with pytest.raises(AlteredBlob, match="altered"):
            place.open().get("a/x")
    seen = store.verify()
    assert (seen.versions, [(p.reference, p.fault) for p in seen.problems]) == (2, [("a/x@1", "altered")])
    path.unlink()
    with pytest.raises(MissingBlob):
        place.open().get("a/x")
    assert [p.fault for p in store.verify("a").problems] == ["missing"]


def test_putting_the_same_prefix_again_heals_a_damaged_file(store, place, prefixes):
    prefix = prefixes()
    store.put("a/x", prefix)
    only_file(place).write_bytes(b"")
    with pytest.raises(DamagedBlob):
        place.open().get("a/x")
    store.put("a/x", prefix)
    assert place.open().get("a/x") == prefix
    assert store.verify().problems == ()


def test_altered_object_in_a_bucket_is_never_returned(s3_place, prefixes):
    store = s3_place.open()
    store.put("a/x", prefixes())
    (stored,) = store._blobs.each()
    store._blobs.write(stored.key, b"something else")
    with pytest.raises(AlteredBlob):
        store.get("a/x")
    assert [p.fault for p in store.verify().problems] == ["altered"]


def test_two_catalogues_can_not_share_one_place_for_files(tmp_path, prefixes):
    PrefixStore(tmp_path / "one", blobs=tmp_path / "blobs").put("a/x", prefixes())
    with pytest.raises(UnknownStore, match="another store"):
        PrefixStore(tmp_path / "two", blobs=tmp_path / "blobs")


@pytest.mark.parametrize("written", [0, 10])
def test_a_marker_that_was_cut_off_is_written_again(tmp_path, prefixes, written):
    """Whoever made the store was killed while writing it; nobody else's marker begins like ours."""
    store = PrefixStore(tmp_path / "one")
    marker = tmp_path / "one" / "blobs" / "foreword-store"
    whole = marker.read_bytes()
    marker.write_bytes(whole[:written])
    store.put("a/x", prefixes())
    assert PrefixStore(tmp_path / "one").get("a/x") == prefixes()
    assert marker.read_bytes() == whole


def test_arguments_that_do_not_go_together_are_refused(tmp_path):
    for place, options in (
        ("postgresql://somewhere/db", {}),
        ("mysql://somewhere/db", {"blobs": tmp_path}),
        ("sqlite:///no/such/folder/x.sqlite", {"blobs": tmp_path}),
        (tmp_path / "s", {"blobs": "gopher://hole"}),
        (tmp_path / "s2", {"blob_options": {"key": "x"}}),
    ):
        with pytest.raises(UsageError):
            PrefixStore(place, **options)
    with pytest.raises(UnknownStore):
        PrefixStore(tmp_path / "typo", create=False)
    assert not (tmp_path / "typo").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite):
        PrefixStore(tmp_path / "file")


# -- disks -------------------------------------------------------------------------------------


def test_full_disk_under_the_files_lists_nothing(tmp_path):
    program = textwrap.dedent(
        """
        import resource, sys, torch
        from foreword.errors import CannotWrite
        from foreword.prefix import BaseIdentity, Prefix
        from foreword.store import PrefixStore
        store = PrefixStore(sys.argv[1])
        parts = {n: torch.randn(4, 2, 64, 256) for n in ("decoder.key", "decoder.value")}
        prefix = Prefix(parts, BaseIdentity("tiny", fingerprint="00" * 32))
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
        try:
            store.put("a/x", prefix)
        except CannotWrite as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        assert len(store.list()) == 0
        store.put("a/x", prefix)
        assert store.get("a/x") == prefix
        """
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "s"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "could not be written" in done.stdout
    assert "nothing was changed" in done.stdout
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_full_disk_under_the_catalogue_lists_nothing(sqlite_store, prefixes):
    from sqlalchemy import event

    store = sqlite_store
    store.put("a/before", prefixes(1))

    def fill(connection, *_):
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count={pages}")

    store.close()
    event.listen(store.database.engine, "connect", fill)
    big = prefixes(2, labels={f"note {n}": "x" * 1_000 for n in range(50)})
    with pytest.raises(CannotWrite, match="full"):
        store.put("a/x", big)
    event.remove(store.database.engine, "connect", fill)
    store.close()
    assert [v.name for v in store.list()] == ["before"]
    assert store.verify().problems == ()
    store.put("a/x", big)


# -- the database ------------------------------------------------------------------------------


@contextlib.contextmanager
def database_gone(url):
    server, name = (
        url.replace("/" + url.split("?")[0].rsplit("/", 1)[1], "/postgres"),
        url.split("?")[0].rsplit("/", 1)[1],
    )
    run_sql(
        server,
        f"ALTER DATABASE {name} ALLOW_CONNECTIONS false",
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",
    )
    try:
        yield
    finally:
        run_sql(server, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


def test_database_gone_in_the_middle_of_a_put_lists_nothing(postgres_place, prefixes, monkeypatch):
    store, prefix = postgres_place.open(), prefixes()
    write = store._blobs.write
    with contextlib.ExitStack() as stack:

        def write_and_lose(key, content):
            write(key, content)
            stack.enter_context(database_gone(postgres_place.database))

        monkeypatch.setattr(store._blobs, "write", write_and_lose)
        with pytest.raises(StoreUnavailable, match="did not answer"):
            store.put("a/x", prefix)
        with pytest.raises(StoreUnavailable):
            store.list()
    monkeypatch.undo()
    assert len(store.list()) == 0
    assert store.collect_garbage(grace=0).blobs == 1
    assert store.put("a/x", prefix).number == 1
    assert store.get("a/x") == prefix


def test_password_of_the_database_is_in_no_error(tmp_path):
    with pytest.raises(StoreUnavailable) as raised:
        PrefixStore("postgresql://me:hunter2@127.0.0.1:1/db", blobs=tmp_path)
    assert "hunter2" not in str(raised.value)


def test_bucket_that_does_not_answer_is_named_and_nothing_is_listed(s3_place, prefixes, monkeypatch):
    store = s3_place.open()

    def fail(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(store._blobs.system, "pipe_file", fail)
    with pytest.raises(StoreUnavailable, match="no route"):
        store.put("a/x", prefixes())
    assert len(store.list()) == 0


def test_sqlite_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "catalogue.sqlite").write_bytes(b"this is not a database" * 100)
    with pytest.raises(StoreUnavailable):
        PrefixStore(tmp_path)
