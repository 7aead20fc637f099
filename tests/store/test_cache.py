"""Two tiers with limits; the least recently used leave; nothing wrong is ever handed out."""

import hashlib
import os

from foreword.store.cache import Cache, DiskCache, MemoryCache


def digest(content):
    return hashlib.sha256(content).hexdigest()


def test_memory_keeps_the_most_recently_used_within_its_limit(prefixes):
    cache = MemoryCache(limit=30)
    values = {name: prefixes(seed) for seed, name in enumerate("abcd")}
    for name in "abc":
        cache.put("o", name, values[name], 10)
    assert cache.get("o", "a") is values["a"]
    cache.put("o", "d", values["d"], 10)
    assert [name for name in "abcd" if cache.get("o", name)] == ["a", "c", "d"]
    assert cache.size == 30
    cache.put("o", "huge", values["a"], 31)
    assert cache.get("o", "huge") is None
    assert len(cache) == 3
    cache.put("o", "a", values["a"], 20)
    assert cache.size <= 30


def test_memory_of_one_owner_is_not_another_owners(prefixes):
    cache = MemoryCache(limit=100)
    cache.put("alice", "d", prefixes(), 10)
    assert cache.get("bob", "d") is None
    cache.put("bob", "d", prefixes(), 10)
    cache.drop("alice")
    assert cache.get("alice", "d") is None
    assert cache.get("bob", "d")
    assert cache.size == 10


def test_disk_keeps_the_most_recently_used_within_its_limit(tmp_path):
    cache = DiskCache(tmp_path, limit=35)
    contents = [bytes([i]) * 10 for i in range(5)]
    for age, content in enumerate(contents[:3]):
        cache.put("o", digest(content), content)
        os.utime(tmp_path / "o" / digest(content), (1000 + age,) * 2)
    assert cache.get("o", digest(contents[0])) == contents[0]
    cache.put("o", digest(contents[3]), contents[3])
    cache.put("o", digest(contents[4]), contents[4])
    kept = [i for i, content in enumerate(contents) if cache.get("o", digest(content))]
    assert kept == [0, 3, 4]
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= 35
    cache.put("o", "huge", b"x" * 36)
    assert cache.get("o", "huge") is None


def test_altered_file_in_the_disk_cache_is_removed_not_returned(tmp_path):
    cache = DiskCache(tmp_path, limit=100)
    cache.put("o", digest(b"right"), b"right")
    path = tmp_path / "o" / digest(b"right")
    path.write_bytes(b"wrong")
    assert cache.get("o", digest(b"right")) is None
    assert not path.exists()


def test_disk_cache_that_can_not_be_written_does_no_harm(tmp_path):
    (tmp_path / "file").write_text("")
    cache = DiskCache(tmp_path / "file", limit=100)
    cache.put("o", digest(b"x"), b"x")
    assert cache.get("o", digest(b"x")) is None


def test_what_was_found_before_an_owner_was_forgotten_is_not_kept_afterwards(tmp_path, prefixes):
    cache = Cache(MemoryCache(100), DiskCache(tmp_path, 100), epoch=0)
    cache.settle(5, lambda since: ["alice"])
    cache.put("alice", "d", prefixes(), b"late", epoch=4)
    assert cache.memory.get("alice", "d") is None
    assert not list(tmp_path.glob("alice/*"))


def test_second_get_reads_neither_bucket_nor_after_a_restart(s3_place, prefixes, monkeypatch):
    prefix = prefixes()
    store = s3_place.open()
    store.put("a/x", prefix)
    store.get("a/x")
    monkeypatch.setattr(store._blobs, "read", None)
    assert store.get("a/x") is store.get("a/x")
    restarted = s3_place.open()
    monkeypatch.setattr(restarted._blobs, "read", None)
    assert restarted.get("a/x") == prefix
