"""Files are checked again in turn, by one server at a time, and a storage that is away is no damage."""

import shutil

import pytest
from sqlalchemy import select

from foreword.errors import AlteredBlob, MissingBlob, StoreUnavailable
from foreword.store import tasks
from foreword.store.schema import blob, now


def check(store, older_than=0.0):
    return store.check_files(older_than=older_than, pause=lambda seconds: False)


def grow_old(store, seconds=100.0):
    store.database.write(lambda connection: connection.execute(blob.update().values(checked=now(seconds))))


def test_a_task_is_one_servers_until_it_is_done_or_its_time_is_over(store, place):
    def claim(holder, seconds=60.0, every=0.0):
        return tasks.claim(place.open().database, "verify", holder, seconds=seconds, every=every)

    assert claim("a")
    assert claim("a")
    assert not claim("b")
    tasks.finish(store.database, "verify", "b")  # not b's to end
    assert not claim("b")
    tasks.finish(store.database, "verify", "a")
    assert not claim("b", every=3600)
    assert claim("b", seconds=-1)  # and is killed over it
    assert claim("a")


def test_what_has_gone_bad_is_found_and_a_put_mends_it(store, place, prefixes):
    kept = [prefixes(number) for number in range(3)]
    paths = []
    for number, prefix in enumerate(kept):
        version = store.put(f"alice/{number}", prefix)
        paths.append(next(place.blobs.rglob(f"{version.digest}-*")))
    assert check(store, 60.0).files == 0  # all were whole a moment ago
    grow_old(store)
    paths[0].write_bytes(b"rotten")
    paths[1].unlink()
    seen = check(store, 60.0)
    assert (seen.files, seen.damaged, seen.missing) == (3, (kept[0].digest,), (kept[1].digest,))
    assert check(store, 60.0).files == 0
    facts = tasks.checks(store.database)
    assert (facts["damaged"], facts["missing"]) == (1, 1)
    store.put("alice/0", kept[0])
    store.put("bob/0", kept[1])
    facts = tasks.checks(store.database)
    assert (facts["damaged"], facts["missing"]) == (0, 0)
    for prefix in kept[:2]:
        assert place.open(memory_bytes=0).get(f"alice/{kept.index(prefix)}") == prefix


def test_a_file_that_can_t_be_read_alone_keeps_no_other_from_being_checked(
    store, place, prefixes, monkeypatch
):
    first, second = (store.put(f"alice/{number}", prefixes(number)) for number in range(2))
    grow_old(store)
    read = type(store._blobs).read

    def bad_sector(self, key):
        if first.digest in key:
            raise StoreUnavailable("input/output error")
        return read(self, key)

    monkeypatch.setattr(type(store._blobs), "read", bad_sector)
    seen = check(store, 60.0)
    assert (seen.files, seen.damaged, seen.missing) == (2, (first.digest,), ())
    assert tasks.checks(store.database)["damaged"] == 1
    assert [problem.digest for problem in store.verify().problems] == [first.digest]
    assert second.digest != first.digest


def test_the_longest_unchecked_come_first_and_a_check_can_be_left(sqlite_store, prefixes):
    for number in range(3):
        sqlite_store.put(f"alice/{number}", prefixes(number))
    grow_old(sqlite_store)
    oldest = sqlite_store.put("alice/oldest", prefixes(9)).digest
    sqlite_store.database.write(
        lambda c: c.execute(blob.update().where(blob.c.digest == oldest).values(checked=now(9999)))
    )
    asked = []
    seen = sqlite_store.check_files(older_than=60, pause=lambda seconds: asked.append(seconds) or True)
    assert (seen.files, len(asked)) == (1, 1)
    fresh = sqlite_store.database.rows(select(blob.c.digest).where(blob.c.checked > now(30)))
    assert [row.digest for row in fresh] == [oldest]


def test_a_place_for_files_that_is_away_is_no_damage(place, prefixes):
    store = place.open(memory_bytes=0)
    store.put("alice/x", prefixes(1))
    grow_old(store)
    away = place.blobs.with_name("unmounted")
    place.blobs.rename(away)
    for work in (lambda: store.get("alice/x"), lambda: check(store), store.verify):
        with pytest.raises(StoreUnavailable, match="mounted"):
            work()
    assert tasks.checks(store.database)["missing"] == 0
    away.rename(place.blobs)
    assert store.get("alice/x") == prefixes(1)
    shutil.rmtree(next(place.blobs.rglob("*.prefix")).parent)
    with pytest.raises(MissingBlob):
        store.get("alice/x")


def test_bytes_that_were_lost_on_the_way_are_read_again(s3_place, prefixes, monkeypatch):
    store = s3_place.open(memory_bytes=0, disk_bytes=0)
    store.put("alice/x", prefixes(1))
    read, cut = store._blobs.read, []

    def cut_once(key):
        content = read(key)
        if not cut:
            cut.append(key)
            return content[:-1]
        return content

    monkeypatch.setattr(store._blobs, "read", cut_once)
    assert store.get("alice/x") == prefixes(1)
    monkeypatch.setattr(store._blobs, "read", lambda key: read(key)[:-1])
    with pytest.raises(AlteredBlob):
        store.get("alice/x")
