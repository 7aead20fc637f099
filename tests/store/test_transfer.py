"""A whole owner out of one store and into another; a bad archive leaves no trace."""

import json
import zipfile

import pytest

from foreword.errors import BadArchive, CannotRead, NotAllowed, OutputExists, PrefixExists, UnknownPrefix
from foreword.store import PrefixStore


@pytest.fixture
def archive(store, prefixes, tmp_path):
    for seed in (1, 2, 3):
        store.put("alice/x", prefixes(seed))
    store.put("alice/y", prefixes(1))
    store.put("bob/z", prefixes(9))
    store.delete("alice/x@2")
    store.label("alice/x@1", "production")
    store.publish("alice/y")
    path = tmp_path / "alice.zip"
    written = store.export_owner("alice", path)
    assert (written.prefixes, written.versions, written.blobs) == (2, 3, 2)
    return path


def changed(path, target, member, change):
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name == member or member is None else content)
    return target


def test_export_and_import_keep_versions_numbers_times_and_labels(archive, store, tmp_path, prefixes):
    other = PrefixStore(tmp_path / "other")
    assert other.import_owner(archive).versions == 3
    for reference in ("alice/x@1", "alice/x@3", "alice/x@production", "alice/y"):
        assert other.get(reference) == store.get(reference)
        assert other.describe(reference).version.created == store.describe(reference).version.created
    assert other.describe("alice/x").numbers == (1, 3)
    assert [f"{v.owner}/{v.name}" for v in other.each()] == ["alice/x", "alice/y"]
    assert other.put("alice/x", prefixes(5)).number == 4
    assert other.verify().problems == ()


def test_import_is_private_and_may_go_to_another_owner(archive, tmp_path):
    other = PrefixStore(tmp_path / "other")
    other.as_owner("carol").import_owner(archive, owner="carol")
    assert other.get("carol/x@production")
    assert len(other.as_owner("dave").list()) == 0
    with pytest.raises(NotAllowed):
        other.as_owner("dave").import_owner(archive)


def test_import_beside_existing_names_changes_nothing(archive, store, tmp_path, prefixes):
    other = PrefixStore(tmp_path / "other")
    other.put("alice/y", prefixes(8))
    with pytest.raises(PrefixExists, match="alice/y"):
        other.import_owner(archive)
    assert [v.reference for v in other.each()] == ["alice/y@1"]
    with pytest.raises(PrefixExists):
        store.import_owner(archive)


def test_owner_without_versions_and_existing_output_are_refused(archive, store, tmp_path):
    with pytest.raises(UnknownPrefix):
        store.export_owner("nobody", tmp_path / "n.zip")
    assert not (tmp_path / "n.zip").exists()
    with pytest.raises(OutputExists):
        store.export_owner("alice", archive)


def edit(**changes):
    def change(content):
        manifest = json.loads(content)
        for name, value in changes.items():
            if name in manifest:
                manifest[name] = value
            else:
                manifest["versions"][0][name] = value
        return json.dumps(manifest).encode()

    return change


@pytest.mark.parametrize(
    "change",
    [
        edit(owner="../../etc"),
        edit(name="../x"),
        edit(number=0),
        edit(number="1"),
        edit(number=3),
        edit(digest="00" * 32),
        edit(digest="../../secret"),
        edit(versions=[]),
        edit(versions=None),
        edit(labels=[{"name": "x", "label": "p", "number": 77}]),
        edit(labels=[{"name": "x", "label": "latest", "number": 1}]),
        edit(**{"foreword-export": 99}),
        lambda content: b"{",
        lambda content: b"[]",
    ],
)  # fmt: skip
def test_altered_manifest_is_refused_whole(archive, tmp_path, change):
    bad = changed(archive, tmp_path / "bad.zip", "manifest.json", change)
    other = PrefixStore(tmp_path / "other")
    with pytest.raises(BadArchive):
        other.import_owner(bad)
    assert len(other.list()) == 0


def test_altered_or_foreign_content_is_refused_whole(archive, tmp_path, prefixes):
    other = PrefixStore(tmp_path / "other")
    with zipfile.ZipFile(archive) as opened:
        member = next(name for name in opened.namelist() if name.startswith("blobs/"))
    for number, change in enumerate((lambda c: c[:-1] + b"!", lambda c: b"", lambda c: c + b"x")):
        bad = changed(archive, tmp_path / f"bad{number}.zip", member, change)
        with pytest.raises(BadArchive):
            other.import_owner(bad)
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(BadArchive):
        other.import_owner(tmp_path / "text.zip")
    with pytest.raises(CannotRead):
        other.import_owner(tmp_path / "absent.zip")
    assert len(other.list()) == 0


@pytest.mark.parametrize(
    "created", ["2026-02-30T00:00:00", "x", "", 1, "9999-12-31T23:59:59-14:00", None, "0001-01-01"]
)
def test_a_time_that_is_none_is_refused_and_listing_goes_on(archive, tmp_path, created):
    def change(content):
        manifest = json.loads(content)
        manifest["versions"][0]["created"] = created
        return json.dumps(manifest)

    other = PrefixStore(tmp_path / "other")
    with pytest.raises(BadArchive, match="created is"):
        other.import_owner(changed(archive, tmp_path / "altered.zip", "manifest.json", change))
    assert list(other.each()) == []


def test_a_packed_archive_is_refused_before_it_is_unpacked(archive, tmp_path):
    packed = tmp_path / "packed.zip"
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(BadArchive, match="is compressed, and an export is not"):
        PrefixStore(tmp_path / "other").import_owner(packed)


ALICE = b'{"foreword-export": 1, "owner": "alice", "labels": [], "versions": '


@pytest.mark.parametrize(
    "manifest",
    [
        *(b"[]", b"{}", b"[" * 100_000, b"5", b'{"foreword-export": 1, "owner": 3}', ALICE[:-13] + b"}"),
        *(ALICE + versions + b"}" for versions in (b"5", b"[5]", b'[{"name": []}]', b'[{"name": "x"}]')),
    ],
    ids=lambda manifest: manifest[-20:].decode(),
)
def test_a_manifest_of_other_types_is_refused_in_our_words(archive, tmp_path, manifest):
    altered = changed(archive, tmp_path / "altered.zip", "manifest.json", lambda _: manifest)
    with pytest.raises(BadArchive) as caught:
        PrefixStore(tmp_path / "other").import_owner(altered)
    for word in ("object is not", "indices", "NoneType", "attribute"):  # Python's
        assert word not in str(caught.value)
