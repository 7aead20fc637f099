"""CSV: the same examples whatever the separator and line ends; faults name the line a row begins in."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreword.errors import BadExamples
from foreword.examples import Example, read_examples

# Line ends inside a cell stay what they are; a lone CR is no line end of a text file.
CELL = st.text().map(lambda text: text.replace("\r", ""))
TARGET = CELL.filter(str.strip)


def write(rows: list[list[str]], separator: str = ",", ending: str = "\n") -> bytes:
    stream = io.StringIO()
    csv.writer(stream, delimiter=separator, lineterminator="\n").writerows(rows)
    return stream.getvalue().replace("\n", ending).encode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data"


@given(
    rows=st.lists(st.tuples(CELL, TARGET), min_size=1),
    separator=st.sampled_from([",", "\t", ";"]),
    ending=st.sampled_from(["\n", "\r\n"]),
)
def test_what_is_written_is_what_is_read(tmp_path_factory, rows, separator, ending):
    path = tmp_path_factory.mktemp("data") / "data"
    path.write_bytes(write([["source", "target"], *map(list, rows)], separator, ending))
    cells = [[cell.replace("\n", ending) for cell in row] for row in rows]
    assert read_examples(path) == [Example(*row) for row in cells]


def test_columns_may_have_other_names_and_stand_in_any_order(path):
    path.write_bytes(b"user,subject,id,body\nann,b,1,a\n")
    names = {"source": "body", "target": "subject", "owner": "user"}
    assert read_examples(path, fields=names) == [Example("a", "b", "ann")]


def test_the_owner_column_is_read_without_being_named(path):
    path.write_bytes(b"source,target,owner\na,b,ann\n")
    assert read_examples(path) == [Example("a", "b", "ann")]


def fault(path: Path, content: bytes, **options: object) -> str:
    path.write_bytes(content)
    with pytest.raises(BadExamples) as caught:
        read_examples(path, format="csv", **options)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (b"text,label\na,b\n", 1, ["'text,label'", "columns source, target", "fields="]),
        (b"source,target,source\na,b,c\n", 1, ["two columns", "'source'"]),
        (b"source,target\n", 1, ["no row follows"]),
        (b"source,target\na,b\nc,d,e\n", 3, ["3 cells", "expected 2", "a comma"]),
        (b"source,target\na\n", 2, ["1 cells", "expected 2"]),
        (b'source,target\n"a\nb",c\nd,\n', 4, ["target is empty"]),
        (b'source,target\na,b\n"c,d\ne,f\n', 3, ["never closed"]),
        (b'source,target\n"a"b,c\n', 2, ["not CSV", "double the quotes"]),
        (b'source,target\na,"' + b"x" * 200_000 + b'"\n', 2, ["131,072 characters", "JSON lines"]),
        (b"source,target,owner\na,b,\n", 2, ["owner is empty"]),
    ],
)
def test_a_fault_names_the_line_in_which_its_row_begins(path, content, line, words):
    message = fault(path, content)
    assert message.startswith(f"{path}, line {line}: ")
    assert all(word in message for word in words), message


def test_a_column_that_the_user_named_must_be_there(path):
    assert "source, target, user" in fault(path, b"source,target\na,b\n", fields={"owner": "user"})
