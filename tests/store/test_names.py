"""Names that could be mistaken, escape a folder or break a terminal are refused before anything happens."""

import pytest

from foreword.errors import BadName
from foreword.store.names import Reference, check_label, folder_name, parse, parse_name

BAD = [
    "", "alice", "/reviews", "alice/", "alice/reviews/extra", "../etc/passwd", "alice/..", "alice/a..b",
    "./alice/x", "alice/.hidden", "-alice/x", "alice/re views", "alice/reviews\n", "alice/re\x00views",
    "alice/\x1b[2Jx", "аlice/reviews", "ａlice/reviews", "alice/réviews", "alice/①", "alice\\x/reviews",
    "alice/" + "x" * 10_000, "x" * 129 + "/a", "alice/%2e%2e", "alice/a:b", "alice/a+b",
]  # fmt: skip


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_bad_name_is_refused_with_a_short_printable_reason(text):
    with pytest.raises(BadName, match="expected") as raised:
        parse_name(text)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 300
    with pytest.raises(BadName):
        parse(text + "@1")


def test_store_refuses_bad_names_and_changes_nothing(sqlite_store, prefixes):
    for text in BAD:
        with pytest.raises(BadName):
            sqlite_store.put(text, prefixes())
        with pytest.raises(BadName):
            sqlite_store.get(text)
    assert len(sqlite_store.list()) == 0
    assert not list(sqlite_store._blobs.each())


@pytest.mark.parametrize("text", ["a/b", "Alice/Reviews-2.1_x", "7/7", "a" * 128 + "/" + "b" * 128])
def test_ordinary_name_is_accepted(text):
    assert "/".join(parse_name(text)) == text


def test_selector_means_number_label_digest_or_latest():
    assert parse("a/b") == parse("a/b@latest") == Reference("a", "b")
    assert parse("a/b@12").number == 12
    assert parse("a/b@production").label == "production"
    assert parse("a/b@sha256:abcdef").digest == "abcdef"
    assert str(parse("a/b@sha256:abcdef")) == "a/b@sha256:abcdef"


@pytest.mark.parametrize(
    "selector",
    ["0", "-1", "sha256:", "sha256:abc", "sha256:XYZXYZ", "1@2", "٣", "²", "pro duction", "9" * 30],
)
def test_bad_selector_is_refused(selector):
    with pytest.raises(BadName):
        parse(f"a/b@{selector}")


@pytest.mark.parametrize("label", ["latest", "12", "", "a/b", "../x", "x" * 129])
def test_bad_label_is_refused(label):
    with pytest.raises(BadName):
        check_label(label)


def test_owners_who_differ_in_case_have_folders_that_differ_without_it():
    assert folder_name("Alice").lower() != folder_name("alice").lower()
    assert folder_name("ALICE") != folder_name("Alice")
