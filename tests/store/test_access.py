"""What a caller may not see does not exist for them, whatever way they try."""

import hashlib
import sqlite3

import pytest

from foreword.errors import BadName, NotAllowed, UnknownKey, UnknownPrefix, UsageError


@pytest.fixture
def shared_store(store, prefixes):
    """bob has a private, a labelled, a public and a prefix shared with carol."""
    for name in ("secret", "open", "carols"):
        store.put(f"bob/{name}", prefixes(hash(name) % 1000))
    store.label("bob/secret", "production")
    store.publish("bob/open")
    store.share("bob/carols", "carol")
    return store


def attempts(view, digest, tmp_path):
    yield lambda: view.get("bob/secret")
    yield lambda: view.get("bob/secret@1")
    yield lambda: view.get("bob/secret@production")
    yield lambda: view.get(f"bob/secret@sha256:{digest}")
    yield lambda: view.describe("bob/secret")
    yield lambda: view.copy("bob/secret", "alice/mine")
    yield lambda: view.label("bob/secret@1", "mine")
    yield lambda: view.unlabel("bob/secret", "production")
    yield lambda: view.delete("bob/secret@1")
    yield lambda: view.delete("bob/secret", all_versions=True)
    yield lambda: view.share("bob/secret", "alice")
    yield lambda: view.unshare("bob/secret", "carol")
    yield lambda: view.publish("bob/secret")
    yield lambda: view.export_owner("bob", tmp_path / "bob.zip")
    yield lambda: view.verify("bob")
    yield lambda: view.audit("bob")
    yield lambda: view.checkpoint_folder("bob")


def test_hidden_prefix_and_absent_prefix_give_the_same_answer(shared_store, tmp_path):
    digest = shared_store.describe("bob/secret").version.digest
    view = shared_store.as_owner("alice")
    for attempt in attempts(view, digest, tmp_path):
        with pytest.raises(UnknownPrefix) as hidden:
            attempt()
        hidden_answer = str(hidden.value)
        assert "secret" not in hidden_answer or "there is no prefix bob/secret" in hidden_answer
    with pytest.raises(UnknownPrefix) as hidden:
        view.get("bob/secret")
    with pytest.raises(UnknownPrefix) as absent:
        view.get("bob/absent")
    assert str(hidden.value).replace("secret", "absent") == str(absent.value)
    assert not list(tmp_path.glob("*.zip"))
    assert shared_store.describe("bob/secret").labels == {"production": 1}


def test_owner_of_the_same_bytes_can_not_reach_the_other_version(shared_store):
    """Files are shared between owners; names, labels and numbers are not."""
    prefix = shared_store.get("bob/secret")
    view = shared_store.as_owner("alice")
    view.put("alice/same", prefix)
    assert view.get(f"alice/same@sha256:{prefix.digest}") == prefix
    with pytest.raises(UnknownPrefix):
        view.get(f"bob/secret@sha256:{prefix.digest}")


def test_writing_elsewhere_is_refused_alike_whether_the_name_exists(shared_store, prefixes):
    view = shared_store.as_owner("alice")
    answers = []
    for name in ("bob/secret", "bob/absent"):
        with pytest.raises(NotAllowed) as raised:
            view.put(name, prefixes(9))
        answers.append(str(raised.value))
    assert answers[0] == answers[1]


def test_each_caller_lists_what_they_may_read_and_nothing_else(shared_store, prefixes):
    shared_store.put("alice/own", prefixes(5))
    shared_store.publish("alice/own")
    shared_store.share("bob/open", "carol")  # public and shared: still listed once

    def names(view, **filters):
        return [f"{v.owner}/{v.name}" for v in view.list(**filters)]

    assert names(shared_store) == ["alice/own", "bob/carols", "bob/open", "bob/secret"]
    assert names(shared_store.as_owner("alice")) == ["alice/own", "bob/open"]
    assert names(shared_store.as_owner("carol")) == ["alice/own", "bob/carols", "bob/open"]
    assert names(shared_store.as_owner("carol"), owner="bob") == ["bob/carols", "bob/open"]
    assert names(shared_store.as_owner("alice"), label="production") == []
    assert names(shared_store.as_owner("bob"), label="production") == ["bob/secret"]
    assert [f"{v.owner}/{v.name}" for v in shared_store.as_owner("carol").each(limit=1)] == [
        "alice/own", "bob/carols", "bob/open",
    ]  # fmt: skip
    assert len(shared_store.as_owner("nobody").list(owner="bob")) == 1
    assert names(shared_store.as_owner("alice"), after="bob/carols") == ["bob/open"]
    assert names(shared_store.as_owner("bob"), after="bob/carols") == ["bob/open", "bob/secret"]


def test_shared_prefix_can_be_read_and_copied_but_not_changed(shared_store):
    view = shared_store.as_owner("carol")
    assert view.get("bob/carols") == shared_store.get("bob/carols")
    assert view.copy("bob/carols", "carol/mine").owner == "carol"
    assert view.describe("bob/carols").shared_with == ()
    for change in (
        lambda: view.delete("bob/carols@1"),
        lambda: view.label("bob/carols", "mine"),
        lambda: view.share("bob/carols", "dave"),
        lambda: view.publish("bob/carols"),
        lambda: view.put("bob/carols", shared_store.get("bob/open")),
        lambda: view.forget("bob"),
        lambda: view.collect_garbage(),
        lambda: view.verify(),
        lambda: view.audit(),
        lambda: view.create_key("carol", "owner"),
        lambda: view.list_keys(),
    ):
        with pytest.raises(NotAllowed):
            change()


def test_sharing_ends_when_it_is_taken_back(shared_store):
    shared_store.unshare("bob/carols", "carol")
    shared_store.publish("bob/open", public=False)
    assert len(shared_store.as_owner("carol").list()) == 0
    for name in ("carols", "open"):
        with pytest.raises(UnknownPrefix):
            shared_store.as_owner("carol").get(f"bob/{name}")


def test_name_that_was_deleted_and_put_again_is_private(shared_store, prefixes):
    for name in ("open", "carols"):
        shared_store.delete(f"bob/{name}", all_versions=True)
        shared_store.put(f"bob/{name}", prefixes(77))
    assert len(shared_store.as_owner("carol").list()) == 0


def test_access_is_asked_at_every_call_not_of_the_cache(shared_store):
    view = shared_store.as_owner("carol")
    view.get("bob/carols")
    shared_store.unshare("bob/carols", "carol")
    with pytest.raises(UnknownPrefix):
        view.get("bob/carols")


def test_reader_reads_and_writes_nothing(shared_store, prefixes):
    view = shared_store.as_owner("bob", role="reader")
    assert view.get("bob/secret")
    for change in (
        lambda: view.put("bob/new", prefixes(1)),
        lambda: view.delete("bob/secret@1"),
        lambda: view.label("bob/secret", "x"),
        lambda: view.copy("bob/secret", "bob/new"),
        lambda: view.forget("bob"),
    ):
        with pytest.raises(NotAllowed):
            change()
    with pytest.raises(UsageError):
        shared_store.as_owner("bob", role="admin")
    with pytest.raises(BadName):
        shared_store.as_owner("../bob")


# -- keys --------------------------------------------------------------------------------------


def test_key_lets_in_until_it_is_revoked(store, prefixes):
    store.put("alice/x", prefixes())
    made = store.create_key("alice", "reader", note="gateway")
    view = store.as_key(made.secret)
    assert (view.caller.owner, view.caller.role, view.caller.key) == ("alice", "reader", made.record.id)
    assert view.get("alice/x")
    assert store.as_key(store.create_key(None, "admin").secret).verify().versions == 1
    assert store.revoke_key(made.record.id).revoked is not None
    with pytest.raises(UnknownKey):
        store.as_key(made.secret)
    assert [key.revoked is None for key in store.list_keys("alice")] == [False]
    assert len(store.list_keys()) == 2


@pytest.mark.parametrize("change", [lambda k: k[:-1] + ("A" if k[-1] != "A" else "B"), lambda k: "", lambda k: k + "x", lambda k: k.upper(), lambda k: "fw_" + "0" * 12 + k[15:]])  # fmt: skip
def test_wrong_key_is_refused_without_being_repeated(sqlite_store, change):
    secret = sqlite_store.create_key("alice", "owner").secret
    wrong = change(secret)
    with pytest.raises(UnknownKey) as raised:
        sqlite_store.as_key(wrong)
    assert not wrong or wrong not in str(raised.value)


def test_secret_is_in_no_file_log_or_repr(sqlite_store, sqlite_place, caplog):
    caplog.set_level(0)
    made = sqlite_store.create_key("alice", "owner", note="n")
    view = sqlite_store.as_key(made.secret)
    sqlite_store.revoke_key(made.record.id)
    secret_half = made.secret.rsplit("_", 1)[1] if made.secret.count("_") == 2 else made.secret[16:]
    texts = [
        repr(made),
        str(made),
        repr(view),
        caplog.text,
        repr(sqlite_store.audit()),
        repr(sqlite_store.list_keys()),
    ]
    assert not any(secret_half in text for text in texts)
    sqlite_store.close()
    for file in sqlite_place.arguments["place"].rglob("*"):
        assert not file.is_file() or secret_half.encode() not in file.read_bytes()
    with sqlite3.connect(sqlite_place.arguments["place"] / "catalogue.sqlite") as raw:
        (kept,) = raw.execute("SELECT secret FROM api_key").fetchone()
    assert kept == hashlib.sha256(made.secret.encode()).hexdigest()


def test_key_of_impossible_role_is_refused(sqlite_store):
    for owner, role in ((None, "owner"), ("alice", "admin"), ("alice", "king")):
        with pytest.raises(UsageError):
            sqlite_store.create_key(owner, role)
    with pytest.raises(UnknownKey):
        sqlite_store.revoke_key("000000000000")


# -- audit -------------------------------------------------------------------------------------


def test_audit_says_who_did_what_when_to_which_digest(store, prefixes):
    prefix = prefixes()
    key = store.create_key("alice", "owner")
    view = store.as_key(key.secret)
    view.put("alice/x", prefix)
    view.label("alice/x", "production")
    view.share("alice/x", "bob")
    view.delete("alice/x@1")
    entries = list(reversed(view.audit("alice")))
    assert [entry.action for entry in entries] == ["make key", "put", "label", "share", "delete"]
    assert entries[1].who == f"owner alice (key {key.record.id})"
    assert entries[1].target == "alice/x@1"
    assert entries[1].digest == entries[4].digest == prefix.digest
    assert entries[0].who == "administrator"
    assert [entry.at for entry in entries] == sorted(entry.at for entry in entries)
    assert store.audit(limit=1, before=entries[1].id)[0].action == "make key"


def test_refused_call_leaves_no_trace_of_success(store, prefixes):
    with pytest.raises(NotAllowed):
        store.as_owner("alice").put("bob/x", prefixes())
    assert store.audit() == ()
