"""Garbage collection takes what nobody names, and never what somebody is about to name."""

import os
import time

import pytest

from foreword.errors import UsageError
from foreword.store import leases
from foreword.store.maintenance import Collected


def files(place):
    return {path.relative_to(place.blobs).as_posix() for path in place.blobs.rglob("*.prefix")}


def test_file_goes_with_its_last_version_and_not_before(store, place, prefixes):
    prefix = prefixes()
    store.put("a/x", prefix)
    store.put("b/y", prefix)
    store.delete("a/x@1")
    assert store.collect_garbage(grace=0) == Collected()
    assert store.get("b/y") == prefix
    store.delete("b/y@1")
    assert store.collect_garbage(grace=0, dry_run=True).blobs == 1
    assert len(files(place)) == 1
    assert store.collect_garbage(grace=3600) == Collected()
    assert store.collect_garbage(grace=0) == Collected(1, 0, len(prefix.to_bytes()))
    assert files(place) == set()
    with pytest.raises(UsageError):
        store.collect_garbage(grace=-1)


@pytest.mark.parametrize("moment", ["after the lease", "after the upload"])
def test_put_that_garbage_collection_overtakes_keeps_its_file(store, place, prefixes, monkeypatch, moment):
    prefix = prefixes()
    collector = place.open()
    upload, overtaken = leases._upload, []

    def upload_with_collection(blobs, taken, contents):
        if moment == "after the upload":
            upload(blobs, taken, contents)
        if not overtaken:
            overtaken.append(collector.collect_garbage(grace=0).blobs)
        if moment == "after the lease":
            upload(blobs, taken, contents)

    monkeypatch.setattr(leases, "_upload", upload_with_collection)
    version = store.put("a/x", prefix)
    assert overtaken == [1]  # the row that was leased first is gone
    assert place.open(memory_bytes=0).get(version.reference) == prefix
    collector.collect_garbage(grace=0)
    assert place.open(memory_bytes=0).get(version.reference) == prefix
    assert len(files(place)) == 1


def test_put_does_not_trust_the_unfinished_upload_of_another(store, place, prefixes, monkeypatch):
    """Collected after its upload, it meets a new row for the same bytes, of a process that was killed."""
    prefix = prefixes()
    upload, collector, killed = leases._upload, place.open(), []

    def upload_then_meet_another(blobs, taken, contents):
        upload(blobs, taken, contents)
        if not killed:
            collector.collect_garbage(grace=0)
            killed.append(
                collector.database.write(lambda connection: leases._lease(connection, prefix.digest, 1))
            )

    monkeypatch.setattr(leases, "_upload", upload_then_meet_another)
    store.put("a/x", prefix)
    assert place.open(memory_bytes=0).get("a/x") == prefix
    assert len(files(place)) == 1


def test_put_that_finds_the_file_of_a_deleted_version_keeps_it(store, place, prefixes, monkeypatch):
    """The file is there when the put looks, and garbage collection takes it before the put ends."""
    prefix = prefixes()
    store.put("a/x", prefix)
    store.delete("a/x@1")
    upload, collector, done = leases._upload, place.open(), []

    def upload_then_collect(blobs, taken, contents):
        upload(blobs, taken, contents)
        if not done:
            done.append(collector.collect_garbage(grace=0).blobs)

    monkeypatch.setattr(leases, "_upload", upload_then_collect)
    store.put("b/y", prefix)
    assert done == [1]
    assert place.open(memory_bytes=0).get("b/y") == prefix


def test_leftovers_of_killed_processes_are_removed(store, place, prefixes):
    prefix = prefixes()
    version = store.put("a/x", prefix)
    folder = place.blobs / version.digest[:2]
    orphan = folder / f"{version.digest}-00000000.prefix"
    unfinished = folder / f".{version.digest}-00000001.prefix.abcd.partial"
    in_progress = folder / f".{version.digest}-00000002.prefix.abcd.partial"
    for path in (orphan, unfinished, in_progress):
        path.write_bytes(b"half")
    os.utime(unfinished, (time.time() - 7200,) * 2)
    assert store.collect_garbage(grace=0) == Collected(0, 2, 8)
    assert sorted(folder.iterdir()) == sorted([in_progress, place.blobs / next(iter(files(place)))])
    assert store.get("a/x") == prefix


def test_get_that_deletion_and_garbage_collection_overtake_finds_the_new_file(
    store, place, prefixes, monkeypatch
):
    prefix = prefixes()
    store.put("a/x", prefix)
    reader = place.open(memory_bytes=0)
    read, moved = reader._blobs.read, []

    def read_after_move(key):
        if not moved:
            moved.append(store.delete("a/x@1"))
            store.collect_garbage(grace=0)
            store.put("a/x", prefix)
        return read(key)

    monkeypatch.setattr(reader._blobs, "read", read_after_move)
    assert reader.get("a/x") == prefix
    assert moved


def test_garbage_collection_works_on_a_bucket(s3_place, prefixes):
    store = s3_place.open()
    store.put("a/x", prefixes(1))
    store.put("a/x", prefixes(2))
    store.delete("a/x@1")
    assert store.collect_garbage(grace=0).blobs == 1
    store._blobs.write("ab/orphan", b"half")
    # S3 tells times in whole seconds
    assert store.collect_garbage(grace=-0.0).leftovers == 1
    assert len(list(store._blobs.each())) == 1
    assert store.get("a/x") == prefixes(2)
