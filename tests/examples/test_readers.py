"""Reading a file: its format is told from its content, and files that are none are explained."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import pytest

from foreword.errors import BadExamples, CannotRead, UsageError
from foreword.examples import Example, read_examples

CONTENTS = {
    "jsonl": '{"source": "a", "target": "b"}\n',
    "chat": '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n',
    "csv": "source,target\na,b\n",
    "e2e csv": "mr,ref\nname[a],b\n",
    "e2e lines": "name : a||b\n",
}
SOURCES = {
    "jsonl": "a",
    "chat": ({"role": "user", "content": "a"},),
    "csv": "a",
    "e2e csv": "name : a",
    "e2e lines": "name : a",
}


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("name", ["data", "data.csv", "data.jsonl"])
@pytest.mark.parametrize("content", CONTENTS)
def test_the_content_tells_the_format(tmp_path, content, name, mark, ending):
    path = tmp_path / name
    path.write_bytes((mark + "\n  \n" + CONTENTS[content]).replace("\n", ending).encode())
    assert read_examples(path) == [Example(SOURCES[content], "b")]


def test_a_format_that_cannot_be_told_is_said_with_all_that_can(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("Once upon a time\n")
    with pytest.raises(BadExamples) as caught:
        read_examples(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line 1: can't tell the format from 'Once upon a time'")
    assert all(
        f"({name})" in message for name in ("jsonl", "chat", "sharegpt", "prompt", "alpaca", "csv", "e2e")
    )


def test_wrong_columns_of_a_csv_are_called_wrong_columns(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("text,label\na,b\n")
    with pytest.raises(BadExamples, match="columns source, target"):
        read_examples(path)


@pytest.mark.parametrize("content", ["", "\n \n\r\n", "\ufeff"])
@pytest.mark.parametrize("format", ["auto", "jsonl", "csv", "e2e", "chat"])
def test_an_empty_file_is_called_empty(tmp_path, format, content):
    path = tmp_path / "data"
    path.write_bytes(content.encode())
    with pytest.raises(BadExamples, match="is empty; expected at least one example"):
        read_examples(path, format=format)


def test_an_absent_file_a_folder_and_a_file_without_right_cannot_be_read(tmp_path):
    with pytest.raises(CannotRead, match="absent.jsonl does not exist"):
        read_examples(tmp_path / "absent.jsonl")
    with pytest.raises(CannotRead, match="is a folder"):
        read_examples(tmp_path)
    (tmp_path / "locked").write_text(CONTENTS["jsonl"])
    (tmp_path / "locked").chmod(0)
    if not os.access(tmp_path / "locked", os.R_OK):  # root may read everything
        with pytest.raises(CannotRead, match="Permission denied"):
            read_examples(tmp_path / "locked")


def test_text_that_is_not_utf8_is_placed_to_the_byte(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(CONTENTS["jsonl"].encode() + b'{"source": "caf\xe9", "target": "b"}\n')
    with pytest.raises(BadExamples, match=r"line 2: byte 0xe9 at position 16 is not UTF-8; save"):
        read_examples(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (CONTENTS["jsonl"].encode("utf-16"), "UTF-16"),
        (CONTENTS["jsonl"].encode("utf-32"), "UTF-32"),
        (CONTENTS["csv"].encode("utf-16-le"), "0x00"),
        (CONTENTS["csv"].encode("utf-16-be"), "0x00"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"PK\x03\x04rest", "spreadsheet"),
        (b"PAR1rest", "Parquet"),
    ],
)
def test_a_file_that_is_no_text_is_named(tmp_path, content, words):
    path = tmp_path / "data.csv"
    path.write_bytes(content)
    with pytest.raises(BadExamples, match=words):
        read_examples(path)


def test_a_line_without_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("foreword.examples.records.LONGEST_LINE_BYTES", 1024**2)
    path = tmp_path / "data"
    path.write_bytes(b"{" + b" " * 2 * 1024**2)
    with pytest.raises(BadExamples, match="line 1: longer than 1 MB"):
        read_examples(path)


def test_separators_of_unicode_do_not_end_a_line(tmp_path):
    path = tmp_path / "data"
    text = "one\u2028two\u0085three\x0bfour"
    path.write_bytes(f'{{"source": "{text.replace(chr(11), " ")}", "target": "b"}}\n'.encode())
    assert read_examples(path)[0].source == text.replace(chr(11), " ")


def test_what_follows_the_limit_is_not_looked_at(tmp_path):
    path = tmp_path / "data"
    path.write_text(CONTENTS["jsonl"] * 3 + "nonsense\n")
    assert len(read_examples(path, limit=3)) == 3
    with pytest.raises(BadExamples, match="line 4"):
        read_examples(path, limit=4)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_read_like_a_file(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(CONTENTS["csv"],))
    writer.start()
    assert read_examples(pipe) == [Example("a", "b")]
    writer.join()


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "data"
    path.write_text((CONTENTS["jsonl"]) * 200_000)  # 6 MB
    tracemalloc.start()
    read_examples(path, limit=10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"format": "xml"},
            "format is 'xml'; expected auto, jsonl, csv, e2e, chat, prompt, alpaca, sharegpt",
        ),
        ({"limit": 0}, "limit is 0"),
        ({"fields": {"question": "a"}}, "'question'; expected source, target, owner, messages"),
        ({"fields": {"source": ""}}, "expected the name of a field"),
        ({"format": "e2e", "fields": {"source": "a"}}, "takes no fields at all"),
        ({"format": "chat", "fields": {"source": "a"}}, "takes messages, owner, tools"),
        ({"format": "jsonl", "fields": {"messages": "a"}}, "takes owner, source, target"),
    ],
)
def test_wrong_use_is_told_from_bad_data(tmp_path, options, words):
    path = tmp_path / "data"
    path.write_text(CONTENTS["jsonl"])
    with pytest.raises(UsageError, match=words):
        read_examples(path, **options)


def test_reading_examples_does_not_wait_for_torch():
    command = "import sys, foreword.examples; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


def test_an_example_refuses_what_no_model_can_learn():
    for arguments in [
        (None, "b"),
        (["a"], "b"),
        ("a", None),
        ("a", ""),
        ("a", "b", ""),
        ("a", "b", 3),
        ((), "b"),
        (("a",), "b"),
        (({"role": "user"},), "b"),
        (({"role": "user", "content": None},), "b"),
        ("\ud83d", "b"),
    ]:
        with pytest.raises(BadExamples):
            Example(*arguments)  # type: ignore[arg-type]


def test_paths_may_be_text(tmp_path: Path):
    (tmp_path / "data").write_text(CONTENTS["jsonl"])
    assert read_examples(str(tmp_path / "data")) == [Example("a", "b")]
