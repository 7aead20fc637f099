"""Uploaded files in the catalogue's database, on SQLite and on PostgreSQL."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest

from foreword.errors import BadExamples, StorageLimitExceeded
from foreword.serving.errors import Refused
from foreword.serving.jobs import uploads
from foreword.store import PrefixStore
from foreword.store.access import Caller
from support.stores import make_prefix

ALICE = Caller("alice", "owner")
CONTENT = b'{"source": "a", "target": "b"}\n' * 10


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest) -> Iterator[PrefixStore]:
    with request.getfixturevalue(f"{request.param}_place").open() as opened:
        yield opened


def add(store: PrefixStore, content: bytes = CONTENT, limit: int | None = None) -> uploads.Upload:
    return uploads.add(store.catalogue, ALICE, "alice", "größe.jsonl", content, limit=limit)


def test_a_file_is_kept_listed_and_removed(store: PrefixStore) -> None:
    kept = [add(store) for _ in range(3)]
    assert uploads.find(store.catalogue, "alice", kept[0].id) == kept[0]
    assert uploads.content(store.catalogue, "alice", kept[0].id) == CONTENT
    assert (kept[0].examples, kept[0].style, kept[0].size) == (10, "text", len(CONTENT))
    page, more = uploads.listed(store.catalogue, "alice", 2, None)
    assert ([one.id for one in page], more) == ([kept[2].id, kept[1].id], True)
    page, more = uploads.listed(store.catalogue, "alice", 2, kept[1].id)
    assert ([one.id for one in page], more) == ([kept[0].id], False)
    uploads.remove(store.catalogue, ALICE, "alice", kept[1].id)
    with pytest.raises(Refused, match="no file"):
        uploads.find(store.catalogue, "alice", kept[1].id)
    with pytest.raises(Refused, match="no file"):
        uploads.remove(store.catalogue, Caller("bob", "owner"), "bob", kept[0].id)


def test_files_and_prefixes_count_together_and_every_file_once(store: PrefixStore) -> None:
    size = store.put("alice/one", make_prefix()).size
    store.copy("alice/one", "alice/copy")
    store.put("bob/other", make_prefix(2))
    limit = size + 2 * len(CONTENT)
    add(store, limit=limit)
    add(store, limit=limit)
    with pytest.raises(StorageLimitExceeded, match=f"alice stores {limit} bytes"):
        add(store, limit=limit)
    assert len(uploads.listed(store.catalogue, "alice", 10, None)[0]) == 2


def test_the_beginning_of_a_file_is_its_first_whole_lines(store: PrefixStore) -> None:
    file = add(store).id
    line = len(CONTENT) // 10
    for most, lines in ((line - 1, 0), (line, 1), (3 * line + 5, 3), (len(CONTENT) + 1, 10)):
        assert len(uploads.beginning(store.database, "alice", file, most)) == lines
    with pytest.raises(Refused, match="no file"):
        uploads.beginning(store.database, "bob", file, 100)


def test_a_name_that_no_database_holds_is_kept_without_what_is_wrong_with_it(store: PrefixStore) -> None:
    file = uploads.add(store.database, ALICE, "alice", "a\0b\ud800.jsonl", CONTENT, limit=None)
    assert uploads.find(store.database, "alice", file.id).filename == "a\ufffdb?.jsonl"


def test_what_can_not_be_divided_is_read_whole_for_its_beginning(store: PrefixStore) -> None:
    rows = json.dumps([{"source": "a", "target": str(number)} for number in range(50)], indent=1).encode()
    file = add(store, rows)
    assert (file.examples, file.told) == (50, "read 50 examples: source and target")
    assert len(uploads.beginning(store.database, "alice", file.id, 100, 20)) == 20
    assert uploads.find(store.database, "alice", file.id).told is None  # of the upload's answer alone


def parquet(rows: list[dict[str, Any]]) -> bytes:
    pyarrow = pytest.importorskip("pyarrow", reason="foreword[data] is not installed")
    from pyarrow import parquet

    stream = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
    return stream.getvalue()


def test_a_parquet_is_read_in_a_process_of_its_own_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    found = uploads.check(parquet([{"prompt": "a", "completion": "b"}] * 3), "a.parquet")
    assert (found.examples, found.style) == (3, "text")
    assert uploads.check(parquet([{"question": "a"}]), "a.parquet").style == "records"
    with pytest.raises(Refused, match="the Parquet file can't be read") as caught:
        uploads.check(b"PAR1rest", "a.parquet")
    assert caught.value.status == 400
    many = parquet([{"prompt": "a", "completion": "b"}] * 3)
    monkeypatch.setattr(uploads, "MOST_ROWS", 2)
    with pytest.raises(BadExamples, match="has 3 rows of .* bytes in all; expected at most 2 rows"):
        uploads.parse(many, "a.parquet")


def test_a_bad_file_leaves_nothing(store: PrefixStore) -> None:
    with pytest.raises(BadExamples, match=r"^'gr\\xf6\\xdfe.jsonl', line 11: "):
        add(store, CONTENT + b"{}\n")
    with pytest.raises(BadExamples, match="line 11: found prompt and completion .* but in line 1 source and"):
        add(store, CONTENT + b'{"prompt": "a", "completion": "b"}\n')
    assert uploads.listed(store.catalogue, "alice", 10, None) == ([], False)
