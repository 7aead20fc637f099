"""Put, get, list, label, copy and delete, on SQLite, PostgreSQL and S3."""

import hashlib

import pytest
import torch

from foreword.errors import BadName, NotAPrefixFile, UnknownPrefix, UsageError
from foreword.prefix import Prefix


def test_what_was_put_comes_back_in_another_process(every_place, prefixes):
    prefix = prefixes(1, labels={"note": "größer"})
    with every_place.open() as store:
        version = store.put("alice/reviews", prefix)
    assert version.digest == hashlib.sha256(prefix.to_bytes()).hexdigest()
    assert version.size == len(prefix.to_bytes())
    assert (version.number, version.base, version.length, version.dtype) == (1, "tiny", 3, "float32")
    with every_place.open() as store:
        found = store.get("alice/reviews")
    assert found == prefix
    assert torch.equal(found.key(), prefix.key())
    assert found.labels == {"note": "größer"}


def test_versions_count_up_and_stay_what_they_were(store, prefixes):
    made = [prefixes(seed) for seed in range(3)]
    assert [store.put("alice/reviews", prefix).number for prefix in made] == [1, 2, 3]
    assert store.get("alice/reviews") == store.get("alice/reviews@latest") == made[2]
    for number, prefix in enumerate(made, 1):
        assert store.get(f"alice/reviews@{number}") == prefix
        assert store.get(f"alice/reviews@sha256:{prefix.digest}") == prefix
        assert store.get(f"alice/reviews@sha256:{prefix.digest[:10]}") == prefix
    assert store.describe("alice/reviews").numbers == (1, 2, 3)


def test_repeated_put_makes_no_second_version_but_returning_to_old_content_does(store, prefixes):
    assert store.put("a/x", prefixes(1)) == store.put("a/x", prefixes(1))
    assert store.put("a/x", prefixes(2)).number == 2
    assert store.put("a/x", prefixes(1)).number == 3


def test_number_is_never_given_twice(store, prefixes):
    store.put("a/x", prefixes(1))
    store.put("a/x", prefixes(2))
    assert store.delete("a/x@2") == ("a/x@2",)
    assert store.put("a/x", prefixes(3)).number == 3
    assert store.delete("a/x", all_versions=True) == ("a/x@1", "a/x@3")
    assert len(store.list()) == 0
    assert store.put("a/x", prefixes(4)).number == 4


def test_deleted_version_is_unknown_and_the_one_before_is_latest(store, prefixes):
    first, second = prefixes(1), prefixes(2, base="other")
    store.put("a/x", first)
    store.put("a/x", second)
    assert [v.number for v in store.list(base="other")] == [2]
    store.delete("a/x@2")
    for reference in ("a/x@2", f"a/x@sha256:{second.digest}"):
        with pytest.raises(UnknownPrefix):
            store.get(reference)
    assert store.get("a/x") == first
    assert len(store.list(base="other")) == 0
    assert [v.number for v in store.list(base="tiny")] == [1]


def test_delete_wants_to_know_which_version(store, prefixes):
    store.put("a/x", prefixes())
    with pytest.raises(UsageError, match=r"owner/name@3, or give all_versions=True"):
        store.delete("a/x")
    with pytest.raises(UsageError):
        store.delete("a/x@1", all_versions=True)
    assert len(store.list()) == 1


def test_label_moves_and_goes_with_its_version(store, prefixes):
    first, second = prefixes(1), prefixes(2)
    store.put("a/x", first)
    store.put("a/x", second)
    assert store.label("a/x@1", "production").labels == ("production",)
    assert store.get("a/x@production") == first
    store.label("a/x@2", "production")
    assert store.get("a/x@production") == second
    assert store.describe("a/x@1").version.labels == ()
    assert store.describe("a/x").labels == {"production": 2}
    store.delete("a/x@2")
    with pytest.raises(UnknownPrefix):
        store.get("a/x@production")
    store.label("a/x", "old")
    store.unlabel("a/x", "old")
    with pytest.raises(UnknownPrefix):
        store.get("a/x@old")
    with pytest.raises(UnknownPrefix):
        store.unlabel("a/x", "old")
    with pytest.raises(BadName):
        store.label("a/x", "latest")


def test_copy_moves_no_bytes_and_outlives_its_source(store, place, prefixes):
    prefix = prefixes()
    store.put("a/x", prefix)
    copied = store.copy("a/x", "b/y")
    assert (copied.reference, copied.digest) == ("b/y@1", prefix.digest)
    assert len(list(place.blobs.rglob("*.prefix"))) == 1
    store.delete("a/x@1")
    store.collect_garbage(grace=0)
    assert store.get("b/y") == prefix


def test_same_name_of_two_owners_is_two_prefixes(store, prefixes):
    mine, theirs = prefixes(1), prefixes(2)
    store.put("alice/reviews", mine)
    store.put("bob/reviews", theirs)
    store.delete("bob/reviews@1")
    assert store.get("alice/reviews") == mine


def test_pages_hold_every_name_once_in_order(store, prefixes):
    expected = sorted(
        f"{owner}/{name}{i}" for owner in ("a", "B", "c.d") for name in ("x", "X-") for i in range(4)
    )
    store.put_many({name: prefixes() for name in reversed(expected)})
    seen, after = [], None
    while True:
        page = store.list(limit=5, after=after)
        assert len(page) <= 5
        seen += [f"{v.owner}/{v.name}" for v in page]
        after = page.next
        if after is None:
            break
    assert seen == expected
    assert [v.name for v in store.list(owner="a", name="X")] == ["X-0", "X-1", "X-2", "X-3"]
    assert [v.name for v in store.list(owner="a", after="a/x1")] == ["x2", "x3"]


def test_list_by_label_shows_the_labelled_version(store, prefixes):
    for seed in (1, 2):
        store.put("a/x", prefixes(seed))
    store.put("a/y", prefixes(3))
    store.label("a/x@1", "production")
    assert [v.reference for v in store.list(label="production")] == ["a/x@1"]
    assert len(store.list(label="unheard-of")) == 0


@pytest.mark.parametrize("limit", [0, -1, 1001])
def test_page_size_out_of_range_is_refused(sqlite_store, limit):
    with pytest.raises(UsageError, match="1 to 1000"):
        sqlite_store.list(limit=limit)


def test_put_many_lists_all_or_none(store, prefixes, monkeypatch):
    with pytest.raises(BadName):
        store.put_many({"a/x": prefixes(1), "a/../y": prefixes(2)})
    monkeypatch.setattr(
        store._blobs, "write", lambda key, content: (_ for _ in ()).throw(RuntimeError("pulled plug"))
    )
    with pytest.raises(RuntimeError):
        store.put_many({"a/x": prefixes(1), "a/y": prefixes(2)})
    assert len(store.list()) == 0


def test_file_is_put_as_what_it_says_and_other_files_are_refused(store, tmp_path, prefixes):
    prefix = prefixes()
    prefix.save(tmp_path / "good.prefix")
    assert store.put("a/x", tmp_path / "good.prefix").digest == prefix.digest
    (tmp_path / "bad.prefix").write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(NotAPrefixFile):
        store.put("a/bad", tmp_path / "bad.prefix")
    with pytest.raises(UsageError, match="expected a Prefix"):
        store.put("a/bad", {"decoder.key": torch.zeros(1)})
    assert [v.name for v in store.list()] == ["x"]


def test_blob_opens_as_a_prefix_file_without_the_store(store, place, prefixes):
    prefix = prefixes()
    store.put("a/x", prefix)
    (file,) = place.blobs.rglob("*.prefix")
    assert Prefix.load(file) == prefix
    assert prefix.digest in file.name


def test_digits_that_fit_two_versions_are_refused(sqlite_store):
    from foreword.store.schema import blob, version

    store = sqlite_store
    digests = ["ab" * 32, "ab" * 31 + "cd"]

    def work(connection):
        from foreword.store.schema import prefix

        connection.execute(prefix.insert().values(owner="a", name="x", public=False, counter=2, latest=2))
        for number, digest in enumerate(digests, 1):
            connection.execute(
                blob.insert().values(digest=digest, key=digest, size=1, ready=True, touched="")
            )
            connection.execute(
                version.insert().values(
                    owner="a",
                    name="x",
                    number=number,
                    digest=digest,
                    created="",
                    base="",
                    length=1,
                    dtype="",
                    facts={},
                )
            )

    store.database.write(work)
    with pytest.raises(UsageError, match="more digits"):
        store.describe("a/x@sha256:ababab")
    assert store.describe(f"a/x@sha256:{digests[1]}").version.number == 2


def test_description_is_of_one_moment(store, place, prefixes, monkeypatch):
    """A deletion that comes between its queries is not half seen."""
    from foreword.store import versions

    store.put("a/x", prefixes(1))
    store.label("a/x", "production")
    other, locate, gone = place.open(), versions.locate, []

    def locate_then_delete(connection, caller, reference):
        found = locate(connection, caller, reference)
        if not gone:
            gone.append(True)
            gone.append(other.delete("a/x@1"))
        return found

    monkeypatch.setattr(versions, "locate", locate_then_delete)
    described = store.describe("a/x")
    assert len(gone) == 2
    assert described.numbers == (1,)
    assert described.labels == {"production": 1}
