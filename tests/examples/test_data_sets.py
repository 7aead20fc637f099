"""Parquet files and data sets of the package `datasets`: what they hold is read as any other file is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from foreword.errors import BadExamples, CannotRead, DownloadFailed, UnknownField
from foreword.examples import Example, read_examples

REASON = "foreword[data] is not installed"
CALL = {"name": "add", "arguments": '{"a": 1}'}
CONVERSATIONS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "a", "weight": None}, {"role": "assistant", "content": "b"}]},
    {
        "messages": [
            {"role": "user", "content": "c"},
            {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": CALL}]},
        ]
    },
]
CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}],
}
EXPECTED = [
    Example(({"role": "user", "content": "a"},), "b"),
    Example(({"role": "user", "content": "c"},), CALLED),
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow = pytest.importorskip("pyarrow", reason=REASON)
    parquet = pytest.importorskip("pyarrow.parquet", reason=REASON)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_conversations_in_parquet_are_those_that_were_put_in(tmp_path: Path) -> None:
    told: list[str] = []
    assert read_examples(write(tmp_path / "data", CONVERSATIONS), notify=told.append) == EXPECTED
    assert told == ["read 2 examples: OpenAI chat messages"]


def test_wrong_columns_of_a_parquet_are_named_with_the_way_out(tmp_path: Path) -> None:
    path = write(tmp_path / "data.parquet", [{"question": "a", "answer": "b", "id": 7}])
    with pytest.raises(UnknownField, match="row 1: found the columns 'question', 'answer', 'id'; expected"):
        read_examples(path)
    assert read_examples(path, fields={"source": "question", "target": "answer"}) == [Example("a", "b")]


def test_a_fault_in_a_row_names_the_row(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": None}]
    with pytest.raises(BadExamples, match="data, row 2: completion is null|row 2: prompt is text and"):
        read_examples(write(tmp_path / "data", rows))


def test_a_damaged_parquet_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "data.parquet", CONVERSATIONS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BadExamples, match="data.parquet: the Parquet file can't be read"):
        read_examples(path)


def test_without_pyarrow_a_parquet_is_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "data").write_bytes(b"PAR1rest")
    with pytest.raises(
        BadExamples, match=r"pyarrow, .* is not installed here; install it: .*foreword\[data\]"
    ):
        read_examples(tmp_path / "data")


def test_a_data_set_is_read_from_its_folder_and_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets", reason=REASON)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    rows = {"train": [{"prompt": "a", "completion": "b"}], "test": [{"prompt": "c", "completion": "d"}]}
    splits = datasets.DatasetDict({name: datasets.Dataset.from_list(each) for name, each in rows.items()})
    splits.save_to_disk(tmp_path / "saved")
    splits["train"].save_to_disk(tmp_path / "one")
    assert read_examples(tmp_path / "saved") == read_examples(tmp_path / "one") == [Example("a", "b")]
    assert read_examples(f"datasets:{tmp_path / 'saved'}:test") == [Example("c", "d")]


def test_a_folder_of_data_files_is_a_data_set(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason=REASON)
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_text(json.dumps({"source": name, "target": "b"}) + "\n")
    # The package keeps what it has read in a cache, whose place is fixed when it is imported.
    program = (
        "import sys; from foreword.examples import read_examples; "
        "print([e.source for p in sys.argv[1:] for e in read_examples(p)])"
    )
    places = (str(folder), f"datasets:{folder}:test")
    environment = {"HF_HOME": str(tmp_path / "cache"), "PYTHONPATH": ":".join(sys.path), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", program, *places], capture_output=True, text=True, env=environment, check=False
    )
    assert done.stdout == "['train', 'test']\n", done.stderr


def test_what_is_no_data_set_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason=REASON)

    def absent(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", absent)
    with pytest.raises(CannotRead, match="is a folder in which datasets finds no data set"):
        read_examples(tmp_path)
    with pytest.raises(
        DownloadFailed, match=r"could not deliver nobody/nothing \(train\): .*no network; check"
    ):
        read_examples("datasets:nobody/nothing")


def test_a_data_set_is_no_table_of_e2e(tmp_path: Path) -> None:
    for source in (str(tmp_path), "datasets:some/name"):
        with pytest.raises(BadExamples, match="format is e2e, but a data set is no such table"):
            read_examples(source, format="e2e")
