"""foreword bench on a tiny model: that it measures and tells; never how fast."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from foreword.bench import data
from foreword.bench.memory import WAYS
from foreword.cli import app
from saved_bases import save_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("bases") / "tiny", max_position_embeddings=512)


def run(*arguments: object) -> Any:
    result = CliRunner().invoke(app, ["bench", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_a_step_is_measured_beside_peft_and_the_machine(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures"
    done = run("step", "--base", tiny, "--sizes", "2,3", "--rounds", 2, "--length", 3, "--out", out, "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert [(row["batch"], row["way"]) for row in told["rows"]] == [
        (f"{batch}, {size}", way)
        for size in (2, 3)
        for batch, way in (
            ("random", "Foreword"),
            ("random", "Foreword, packed"),
            ("by source", "Foreword"),
            ("by source", "Foreword, packed"),
            ("random", "PEFT"),
        )
    ]
    for row in told["rows"]:
        assert row["seconds"]["median"] > 0
        size = int(row["batch"].split(", ")[1])
        assert row["examples/s"]["high"] == pytest.approx(size / row["seconds"]["low"], rel=0.5)
        assert (row["share of the machine's rate"] is None) == row["batch"].startswith("by source")
        assert (row["times PEFT"] is None) == (row["way"] == "PEFT")
    assert told["environment"]["dtype"] == "float32"
    assert "GFLOP/s" in told["limits"]["matrix products (2048 x 2048)"]
    page = (out / "report.md").read_text()
    assert "| random, 2 | Foreword |" in page
    assert f"--base {tiny} --sizes 2,3 --length 3 --rounds 2`" in page
    assert json.loads((out / "report.json").read_text())["rows"] == told["rows"]
    assert (out / "ratios.png").read_bytes().startswith(b"\x89PNG")


def test_many_prefixes_are_generated_in_one_batch(tiny: Path) -> None:
    options = ("--owners", 3, "--new-tokens", 4, "--rounds", 2, "--peft-rounds", 1)
    done = run("generate", "--base", tiny, *options, "--json")
    assert done.exit_code == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["way"] for row in rows] == ["prefixes", "no prefix", "PEFT, one adapter after another"]
    assert rows[0]["prefixes in one batch against it"] == {"median": 1.0, "low": 1.0, "high": 1.0}


def test_memory_is_that_of_processes_of_their_own(tiny: Path) -> None:
    done = run("memory", "--base", tiny, "--size", 8, "--length", 3, "--threads", 1, "--json")
    assert done.exit_code == 0, done.stderr
    rows = {row["way"]: row for row in json.loads(done.stdout)["rows"]}
    assert list(rows) == list(WAYS)
    assert all(0 < row["megabytes"] < 1000 for row in rows.values())
    assert rows["PEFT"]["of PEFT's"] == 1


def test_a_folder_that_holds_a_report_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("precious")
    done = run("step", "--base", "nowhere", "--out", tmp_path)
    assert done.exit_code == 1
    assert "report.json exists already" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_a_peer_that_is_absent_is_named_with_what_installs_it(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else find(name))
    done = run("step", "--base", "nowhere")
    assert done.exit_code == 2
    assert "pip install 'foreword[peft]'" in done.stderr
    alone = run("step", "--base", tiny, "--sizes", 2, "--rounds", 1, "--length", 3, "--no-peft", "--json")
    assert alone.exit_code == 0, alone.stderr
    assert {row["way"] for row in json.loads(alone.stdout)["rows"]} == {"Foreword", "Foreword, packed"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("step", "--sizes", "8,x"), "--sizes is '8,x'"),
        (("step", "--sizes", "0"), "above 0"),
        (("step", "--rounds", 0), "rounds"),
        (("generate", "--owners", 0), "owners"),
    ],
)
def test_options_out_of_range_are_refused(arguments: tuple[object, ...], told: str) -> None:
    done = run(*arguments, "--base", "nowhere")
    assert done.exit_code == 2
    assert told in done.stderr


def test_a_file_with_too_few_examples_is_refused(tiny: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text('{"source": "a", "target": "b"}\n' * 5)
    done = run("step", "--base", tiny, "--data", few, "--sizes", 4, "--rounds", 2)
    assert done.exit_code == 2
    assert "has 5 examples; these rounds need 12" in done.stderr


def test_invented_examples_repeat_their_sources_and_not_their_texts() -> None:
    made = data.invented(64)
    assert len(made) == 64
    assert len({example.source for example in made}) == 64 / data.REFERENCES
    assert data.invented(64) == made
