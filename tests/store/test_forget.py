"""After `forget` nothing of an owner is left, anywhere, and nothing of the others is gone."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from foreword.errors import CannotWrite, NotAllowed, UnknownKey, UnknownPrefix
from foreword.store import PrefixStore, forget


def test_everything_of_the_owner_goes_and_the_report_says_what(store, place, prefixes):
    shared, own, other = prefixes(1), prefixes(2), prefixes(3)
    store.put("alice/confidential-name", shared)
    store.put("alice/confidential-name", own)
    store.put("bob/x", shared)
    store.put("bob/y", other)
    store.share("bob/y", "alice")
    store.label("alice/confidential-name@1", "production")
    secret = store.create_key("alice", "owner").secret
    for owner in ("alice", "bob"):
        folder = store.checkpoint_folder(owner) / "run"
        folder.mkdir(parents=True)
        (folder / "step-1.checkpoint").write_bytes(b"weights")
    before = store.get("alice/confidential-name")

    report = store.forget("alice")

    assert (report.prefixes, report.versions, report.blobs, report.blobs_kept) == (1, 2, 1, 1)
    assert (report.shares, report.keys, report.checkpoints) == (1, 1, 1)
    assert report.size == len(own.to_bytes())
    for reference in (
        "alice/confidential-name",
        "alice/confidential-name@1",
        "alice/confidential-name@production",
    ):
        with pytest.raises(UnknownPrefix):
            store.get(reference)
    with pytest.raises(UnknownKey):
        store.as_key(secret)
    assert not store.checkpoint_folder("alice").exists()
    assert store.checkpoint_folder("bob").exists()
    names = " ".join(path.name for path in place.blobs.rglob("*"))
    assert own.digest not in names
    assert store.get("bob/x") == shared
    assert store.get("bob/y") == other
    assert "confidential-name" not in repr(store.audit())
    assert store.audit()[0].action == "forget"
    assert own.digest in {entry.digest for entry in store.audit("alice")}
    assert store.verify().problems == ()
    assert store.forget("alice").versions == 0
    assert before == own  # a value somebody already holds is theirs


def test_cached_copies_go_here_and_in_every_other_process(s3_place, tmp_path, prefixes):
    store = s3_place.open()
    elsewhere = s3_place.open(disk_cache=tmp_path / "cache-of-another-machine")
    mine, theirs = prefixes(1), prefixes(2)
    store.put("alice/x", mine)
    store.put("bob/x", theirs)
    for opened in (store, elsewhere):
        opened.get("alice/x")
        opened.get("bob/x")
    cached = [*(tmp_path / "cache").rglob(mine.digest), *tmp_path.glob(f"cache-of*/**/{mine.digest}")]
    assert len(cached) == 2

    assert store.forget("alice").cached == 1
    assert not cached[0].exists()
    elsewhere.get("bob/x")  # any call is enough
    assert not cached[1].exists()
    assert elsewhere.cache.memory.get("alice", mine.digest) is None
    assert elsewhere.cache.memory.get("bob", theirs.digest) == theirs
    assert len(list(tmp_path.glob(f"cache*/**/{theirs.digest}"))) == 2


def test_disk_cache_of_a_machine_that_slept_meanwhile_is_emptied_at_its_next_call(
    s3_place, tmp_path, prefixes
):
    asleep = tmp_path / "asleep"
    store = s3_place.open()
    store.put("alice/x", prefixes(1))
    store.put("bob/x", prefixes(2))
    s3_place.open(disk_cache=asleep).get("alice/x")
    store.forget("alice")
    s3_place.open(disk_cache=asleep).get("bob/x")
    assert [path.parent.name for path in asleep.rglob("*") if len(path.name) == 64] == ["bob"]


def test_owner_may_forget_themselves_and_nobody_else(store, prefixes):
    store.put("alice/x", prefixes())
    store.put("bob/x", prefixes())
    view = store.as_owner("alice")
    for owner in ("bob", "absent"):
        with pytest.raises(NotAllowed):
            view.forget(owner)
    assert view.forget("alice").versions == 1
    assert [v.owner for v in store.each()] == ["bob"]


def test_forgetting_one_spelling_leaves_the_other(tmp_path, prefixes):
    store = PrefixStore(tmp_path / "s")
    store.put("alice/x", prefixes())
    store.put("Alice/x", prefixes())
    for owner in ("alice", "Alice"):
        store.checkpoint_folder(owner).mkdir(parents=True)
    store.forget("Alice")
    assert store.get("alice/x")
    assert store.checkpoint_folder("alice").exists()


def test_a_folder_is_removed_though_somebody_still_writes_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A last checkpoint that comes between two looks at the folder; one that keeps coming is told."""
    remove, faults, calls = shutil.rmtree, [errno.ENOTEMPTY, errno.ENOENT], 0

    def disturbed(path: Path) -> None:
        nonlocal calls
        calls += 1
        if faults:
            number = faults.pop(0)
            raise OSError(number, os.strerror(number))
        remove(path)

    monkeypatch.setattr(forget.shutil, "rmtree", disturbed)
    monkeypatch.setattr(forget, "PAUSE_SECONDS", 0.0)
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "one").write_text("x")
    assert forget.remove_folders([tmp_path / "job"]) == 1
    assert not (tmp_path / "job").exists()
    assert calls == 3
    assert forget.remove_folders([tmp_path / "job"]) == 0  # nothing is there any more
    (tmp_path / "job").mkdir()
    faults.extend([errno.ENOTEMPTY] * 10**6)
    with pytest.raises(CannotWrite, match="repeat the call"):
        forget.remove_folders([tmp_path / "job"])
    assert calls == 3 + forget.ATTEMPTS
    faults[:] = [errno.EACCES]  # no right is no question of time
    with pytest.raises(CannotWrite, match="Permission denied"):
        forget.remove_folders([tmp_path / "job"])
    assert calls == 3 + forget.ATTEMPTS + 1
