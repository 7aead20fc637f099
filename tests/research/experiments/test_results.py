"""The results: what is finished stays finished, and nothing of another run is mixed in."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from foreword.errors import CannotWrite, CheckpointMismatch, DamagedCheckpoint, OutputExists
from foreword.research.experiments.results import Results

SETTINGS = {"steps": 3, "seed": 0, "owners": ["alice"]}


def test_pieces_and_sessions_are_there_again(tmp_path: Path) -> None:
    results = Results(tmp_path / "run", "trial", SETTINGS)
    results.begin_session(command="foreword reproduce trial")
    results.add("one", loss=1.5, by={"größer": 2.0})
    again = Results(tmp_path / "run", "trial", SETTINGS)
    assert again.records == results.records == {"one": {"loss": 1.5, "by": {"größer": 2.0}}}
    assert again.sessions == [{"command": "foreword reproduce trial"}]


def test_every_line_is_json_and_the_first_says_whose_run_it_is(tmp_path: Path) -> None:
    results = Results(tmp_path, "trial", SETTINGS)
    results.add("one", loss=1.5)
    first, second = map(json.loads, results.path.read_text().splitlines())
    assert first == {"experiment": "trial", "settings": SETTINGS}
    assert second == {"piece": "one", "loss": 1.5}


def test_figures_that_are_not_finite_are_noted_as_none(tmp_path: Path) -> None:
    results = Results(tmp_path, "trial", SETTINGS)
    results.add("one", loss=math.nan, curve={0: math.inf, 1: 2.5}, by=[{"a": -math.inf}])
    expected = {"loss": None, "curve": {"0": None, "1": 2.5}, "by": [{"a": None}]}
    assert results.records["one"] == Results(tmp_path, "trial", SETTINGS).records["one"] == expected


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    path = Results(tmp_path, "trial", SETTINGS).path
    kept = path.read_bytes()
    with pytest.raises(CheckpointMismatch, match="other settings: steps is 4, was 3; new is 1, was None"):
        Results(tmp_path, "trial", {**SETTINGS, "steps": 4, "new": 1})
    with pytest.raises(CheckpointMismatch, match="owners is None, was"):
        Results(tmp_path, "trial", {"steps": 3, "seed": 0})
    assert path.read_bytes() == kept


def test_another_experiment_is_refused(tmp_path: Path) -> None:
    Results(tmp_path, "trial", SETTINGS)
    with pytest.raises(CheckpointMismatch, match="a run of 'trial', not of 'other'"):
        Results(tmp_path, "other", SETTINGS)


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OutputExists, match="holds thesis.txt"):
        Results(tmp_path, "trial", SETTINGS)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_line_that_a_crash_cut_is_done_again(tmp_path: Path) -> None:
    results = Results(tmp_path, "trial", SETTINGS)
    results.add("one", loss=1.5)
    with open(results.path, "a") as opened:
        opened.write('{"piece": "two", "lo')
    again = Results(tmp_path, "trial", SETTINGS)
    assert list(again.records) == ["one"]
    again.add("two", loss=2.5)
    assert Results(tmp_path, "trial", SETTINGS).records == {"one": {"loss": 1.5}, "two": {"loss": 2.5}}


@pytest.mark.parametrize(
    "content", ["", "half a line", '{"experiment": "trial"}\nnot json\n', "[1]\n", "{}\n"]
)
def test_a_damaged_ledger_is_refused_and_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(content)
    with pytest.raises(DamagedCheckpoint, match=r"results\.jsonl is|line [12] of"):
        Results(tmp_path, "trial", SETTINGS)
    assert path.read_text() == content


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(CannotWrite, match="can't be made"):
        Results(tmp_path / "run", "trial", SETTINGS)
