"""What an owner may store holds for every way of storing, at any moment, and is nobody else's to know."""

import contextlib
import os
import stat
import threading

import pytest
from sqlalchemy import select

from foreword.errors import NotAllowed, StorageLimitExceeded, UnknownKey, UsageError
from foreword.store import leases, quota
from foreword.store.schema import blob, blob_owner, job, now, upload
from foreword.store.versions import MOST_LABELS


def size_of(prefix):
    return len(prefix.to_bytes())


def stored(store, owner):
    return store.database.read(lambda connection: quota.stored_bytes(connection, owner))


def add_job(store, owner, worker="w"):
    row = {"id": "ftjob-1", "owner": owner, "created": now(), "state": "running", "model": "m", "name": "x"}
    row |= {"training_file": "f", "settings": {}, "alike": "", "asked": {}, "attempts": 1, "worker": worker}
    store.database.write(lambda connection: connection.execute(job.insert().values(row)))


def test_a_file_counts_from_before_its_upload_until_it_is_collected(store, prefixes, monkeypatch):
    prefix, seen = prefixes(1), []
    write = store._blobs.write
    monkeypatch.setattr(
        store._blobs, "write", lambda *given: (seen.append(stored(store, "alice")), write(*given))
    )
    store.put("alice/x", prefix)
    size = size_of(prefix)
    assert seen == [size]
    store.put("alice/y", prefix)  # the same file once more
    assert stored(store, "alice") == size
    store.copy("alice/x", "bob/x")
    assert stored(store, "bob") == size
    for name in ("alice/x", "alice/y"):
        store.delete(name, all_versions=True)
    assert stored(store, "alice") == 0  # bob's alone now
    store.delete("bob/x", all_versions=True)
    assert (stored(store, "alice"), stored(store, "bob")) == (size, size)  # nobody has taken it off the disk
    store.collect_garbage(grace=0)
    assert (stored(store, "alice"), stored(store, "bob")) == (0, 0)
    assert store.database.rows(select(blob_owner)) == []


def test_uploads_and_ended_jobs_count(store, prefixes):
    add_job(store, "alice")
    row = {"id": "f", "owner": "alice", "created": now(), "filename": "f", "style": "text", "examples": 1}
    store.database.write(
        lambda connection: connection.execute(upload.insert().values(**row, size=700, content=b""))
    )
    store.database.write(lambda connection: connection.execute(job.update().values(state="cancelled")))
    assert stored(store, "alice") == quota.JOB_BYTES + 700
    assert stored(store, "bob") == 0
    everybody = store.database.rows(quota.stored())
    assert [(one.owner, one.bytes) for one in everybody] == [("alice", quota.JOB_BYTES + 700)]


def test_a_put_over_the_limit_is_refused_before_its_upload(store, place, prefixes):
    first, second = prefixes(1), prefixes(2)
    limit = size_of(first) + size_of(second) - 1
    store.put("alice/x", first, limit=limit)
    with pytest.raises(StorageLimitExceeded, match=f"alice stores {size_of(first)} bytes"):
        store.put("alice/x", second, limit=limit)
    assert store.put("alice/y", first, limit=limit).number == 1  # nothing more
    assert len(list(place.blobs.rglob("*.prefix"))) == 1
    assert store.put("bob/x", second, limit=limit).number == 1


def test_of_two_puts_at_once_that_fit_alone_one_is_refused(store, place, prefixes, monkeypatch):
    """Both have asked before either is listed; for files that are new, and for such as another owner has."""
    one, two = prefixes(1), prefixes(2)
    limit = size_of(one) + size_of(two) - 1
    for known in (False, True):
        owner = f"alice{known}"
        if known:
            store.put("bob/one", one)
            store.put("bob/two", two)
        barrier, ended = threading.Barrier(2, timeout=20), []
        upload_files = leases._upload

        def meet(*given, wait=barrier, upload=upload_files):
            upload(*given)
            with contextlib.suppress(threading.BrokenBarrierError):  # the other was refused before its upload
                wait.wait()

        monkeypatch.setattr(leases, "_upload", meet)

        def put(name, prefix, owner=owner, ended=ended, wait=barrier):
            try:
                ended.append(place.open().put(f"{owner}/{name}", prefix, limit=limit).reference)
            except StorageLimitExceeded:
                ended.append("refused")
                wait.abort()

        threads = [threading.Thread(target=put, args=given) for given in (("one", one), ("two", two))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        monkeypatch.undo()
        assert ended.count("refused") == 1
        assert len(store.list(owner=owner)) == 1
        assert stored(store, owner) <= limit


def test_nothing_is_told_of_another_owners_storage(store, prefixes):
    store.put("bob/x", prefixes(1))
    alice = store.as_owner("alice")
    for prefix in (prefixes(1), prefixes(2, length=90)):
        with pytest.raises(NotAllowed) as caught:
            alice.put("bob/y", prefix, limit=10)
        assert "bytes" not in str(caught.value)


def test_a_put_that_fails_leaves_the_confirmed_file_of_another(store, place, prefixes, monkeypatch):
    """The same bytes at once: the first one's flush fails after the second is listed."""
    prefix, flush = prefixes(1), os.fsync
    opened, confirmed, ended = threading.Event(), threading.Event(), []

    def fail_once(handle):
        of_the_file = stat.S_ISREG(os.fstat(handle).st_mode)
        if threading.current_thread().name == "first" and of_the_file and not opened.is_set():
            opened.set()
            assert confirmed.wait(20)
            raise OSError(28, "No space left on device")
        flush(handle)

    monkeypatch.setattr("foreword.store.blobs.os.fsync", fail_once)

    def put():
        try:
            place.open().put("alice/x", prefix)
        except Exception as error:
            ended.append(type(error).__name__)

    first = threading.Thread(target=put, name="first")
    first.start()
    assert opened.wait(20)
    version = store.put("bob/x", prefix)
    confirmed.set()
    first.join()
    assert ended == ["CannotWrite"]
    assert place.open(memory_bytes=0).get(version.reference) == prefix
    assert store.verify().problems == ()


def test_forgetting_overtakes_a_put_under_way(store, prefixes, monkeypatch):
    secret = store.create_key("alice", "owner").secret
    upload_files = leases._upload

    def forget_first(*given):
        upload_files(*given)
        monkeypatch.setattr(leases, "_upload", upload_files)
        store.forget("alice")

    monkeypatch.setattr(leases, "_upload", forget_first)
    with pytest.raises(UnknownKey):
        store.as_key(secret).put("alice/private-name", prefixes(1))
    monkeypatch.undo()
    assert list(store.each()) == []
    assert "private-name" not in repr(store.audit())
    store.collect_garbage(grace=0)
    assert store.database.rows(select(blob.c.key)) == []


def test_what_is_done_with_a_put_is_done_or_nothing_is(store, prefixes):
    """A job that is no longer its worker's leaves no version, however late that is found."""
    add_job(store, "alice")

    def end(connection, version):
        mine = job.update().where(job.c.worker == "w", job.c.state == "running")
        ended = connection.execute(mine.values(state="succeeded", result=version.reference))
        if ended.rowcount == 0:
            raise UsageError("not ours any more")

    store.forget("alice")
    with pytest.raises(UsageError, match="not ours"):
        store.put("alice/private-name", prefixes(1), also=end)
    assert list(store.each()) == []
    assert "private-name" not in repr(store.audit())

    add_job(store, "alice")
    assert store.put("alice/x", prefixes(1), also=end).number == 1
    assert [row.result for row in store.database.rows(select(job.c.result))] == ["alice/x@1"]


def test_forgetting_takes_what_waits_for_garbage_collection(store, place, prefixes):
    store.put("alice/x", prefixes(1))
    store.delete("alice/x@1")
    assert store.forget("alice").blobs == 1
    assert list(place.blobs.rglob("*.prefix")) == []


def test_labels_of_a_prefix_have_a_limit(sqlite_store, prefixes):
    sqlite_store.put("alice/x", prefixes(1))
    for number in range(MOST_LABELS):
        sqlite_store.label("alice/x@1", f"label-{number}")
    with pytest.raises(UsageError, match="has 100 labels"):
        sqlite_store.label("alice/x@1", "one-more")
    sqlite_store.label("alice/x@1", "label-7")  # is one of them
    sqlite_store.unlabel("alice/x", "label-7")
    assert "one-more" in sqlite_store.label("alice/x@1", "one-more").labels


def test_listing_without_facts_reads_no_header(store, prefixes):
    version = store.put("alice/x", prefixes(1, labels={"note": "long"}))
    (brief,) = store.list(facts=False)
    assert brief.facts == {}
    assert (brief.fingerprint, brief.digest) == ("00" * 32, version.digest)
    (whole,) = store.list()
    assert whole.facts["notes"] == {"note": "long"}
