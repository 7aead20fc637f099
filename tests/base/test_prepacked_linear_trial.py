"""Whether packed weights pay: by number of rows, tried once for a machine, and remembered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from foreword.base import prepacked_linear
from foreword.base.prepacked_linear import can_prepack, prepacking_pays

if not can_prepack():
    pytest.skip("this build of torch has no oneDNN kernels for packed weights", allow_module_level=True)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[int]]:
    """An empty cache, and a machine where packing pays for many rows; says which numbers were tried."""
    rows_tried: list[int] = []

    def times_as_fast(rows: int) -> float:
        rows_tried.append(rows)
        return 1.5 if rows > 1 else 0.7

    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path))
    monkeypatch.setattr(prepacked_linear, "_times_as_fast", times_as_fast)
    prepacked_linear._remembered.cache_clear()
    yield rows_tried
    prepacked_linear._remembered.cache_clear()


def test_few_and_many_rows_are_told_apart(tried: list[int]) -> None:
    assert [prepacking_pays(rows) for rows in (1, 3, 4, 8, 32)] == [False, False, True, True, True]
    assert tried == [1, 8]


def test_another_process_remembers(tried: list[int], tmp_path: Path) -> None:
    assert prepacking_pays(8)
    prepacked_linear._remembered.cache_clear()  # as a new process begins
    assert prepacking_pays(8)
    assert not prepacking_pays(1)
    assert tried == [1, 8]
    (here,) = json.loads((tmp_path / "packing.json").read_text())
    assert "threads, torch" in here


@pytest.mark.parametrize("content", ["", "[]", "{", '{"another": {"rows 2": 1}}', '{"another": 3}'])
def test_a_file_of_something_else_is_written_anew(tried: list[int], tmp_path: Path, content: str) -> None:
    (tmp_path / "packing.json").write_text(content)
    assert prepacking_pays(8)
    assert tried == [1, 8]
    assert len(json.loads((tmp_path / "packing.json").read_text())) == 1


def test_a_cache_that_can_not_be_written_is_done_without(
    tried: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path / "file"))
    assert prepacking_pays(8)


def test_the_trial_times_real_products() -> None:
    assert 0.05 < prepacked_linear._times_as_fast(2) < 20
