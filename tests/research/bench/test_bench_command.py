"""foreword bench on a tiny model: that it measures and tells; never how fast."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from foreword.cli import app
from foreword.research.bench import memory, roofline, startup, workload
from support.saved_bases import save_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("bases") / "tiny", max_position_embeddings=512)


@pytest.fixture(autouse=True)
def small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's rate is taken in every round: how fast it is does not matter here."""
    monkeypatch.setitem(roofline.SIZES, "cpu", roofline.Sizes(64, 1 << 16, 1, 1e6))


def run(*arguments: object) -> Any:
    result = CliRunner().invoke(app, ["bench", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_a_step_is_measured_beside_peft_and_the_machine(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures"
    # One round: of several, quartiles of the seconds are not those of their reciprocals.
    done = run("step", "--base", tiny, "--sizes", "2,3", "--rounds", 1, "--length", 3, "--out", out, "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert [(row["batch"], row["way"]) for row in told["rows"]] == [
        (f"random, {size}", way) for size in (2, 3) for way in ("Foreword", "PEFT")
    ]
    for row in told["rows"]:
        assert row["seconds"]["median"] > 0
        size = int(row["batch"].split(", ")[1])
        assert row["examples/s"]["median"] == pytest.approx(size / row["seconds"]["median"])
        assert row["share of the machine's rate"]["median"] > 0
        assert (row["times PEFT"] is None) == (row["way"] == "PEFT")
    assert told["environment"]["dtype"] == "float32"
    assert "GFLOP/s" in told["limits"]["matrix products (64 x 64, float32)"]
    page = (out / "report.md").read_text()
    assert "| random, 2 | Foreword |" in page
    (command,) = (line for line in page.splitlines() if line.startswith("`foreword bench step "))
    options = command.strip("`").split()[3:]
    assert dict(zip(options[::2], options[1::2], strict=True)) == {
        "--base": str(tiny),
        "--sizes": "2,3",
        "--length": "3",
        "--rounds": "1",
    }
    assert json.loads((out / "report.json").read_text())["rows"] == told["rows"]
    assert (out / "ratios.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("command", ["step", "generate", "machine", "curves"])
def test_bfloat16_is_measured_beside_its_own_rate(tiny: Path, command: str) -> None:
    options = {
        "step": ("--sizes", 2, "--length", 3),
        "generate": ("--owners", 2, "--new-tokens", 2, "--peft-rounds", 1),
        "machine": ("--tokens", 5),
        "curves": ("--of", "batch", "--points", "1,2"),
    }[command]
    options = ("--base", tiny, "--rounds", 1, "--device", "cpu", "--dtype", "bfloat16", *options)
    done = run(command, *options, "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["environment"]["dtype"] == "bfloat16"
    assert "GFLOP/s" in told["limits"]["matrix products (64 x 64, bfloat16)"]


def test_many_prefixes_are_generated_in_one_batch(tiny: Path) -> None:
    options = ("--owners", 3, "--new-tokens", 4, "--rounds", 2, "--peft-rounds", 1)
    done = run("generate", "--base", tiny, *options, "--json")
    assert done.exit_code == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["way"] for row in rows] == ["prefixes", "no prefix", "PEFT, one adapter after another"]
    assert rows[0]["prefixes in one batch against it"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert all(row["share of the machine's limit"]["low"] > 0 for row in rows)


def test_memory_is_that_of_processes_of_their_own(tiny: Path) -> None:
    done = run("memory", "--base", tiny, "--size", 8, "--length", 3, "--rounds", 2, "--threads", 1, "--json")
    assert done.exit_code == 0, done.stderr
    rows = {row["way"]: row for row in json.loads(done.stdout)["rows"]}
    assert list(rows) == list(memory.WAYS)
    assert rows["PEFT"]["of PEFT's"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    for row in rows.values():
        assert 0 < row["megabytes"]["low"] <= row["megabytes"]["high"] < 1000


def test_the_machine_is_measured_at_the_shapes_of_the_model(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "machine"
    done = run("machine", "--base", tiny, "--tokens", 5, "--rounds", 1, "--out", out, "--json")
    assert done.exit_code == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert {(row["layers"], row["shape"], row["count"]) for row in rows[:-2]} == {
        ("q_proj, o_proj", "32 x 32", 6),
        ("k_proj, v_proj", "16 x 32", 6),
        ("gate_proj, up_proj", "48 x 32", 6),
        ("down_proj", "32 x 48", 3),
        ("logits", "97 x 32", 1),
    }
    shares = [row["share of squares"]["median"] for row in rows[:-2]]
    assert min(shares) <= rows[-2]["share of squares"]["median"] <= max(shares)
    assert (out / "ratios.png").read_bytes().startswith(b"\x89PNG")


def test_start_up_is_that_of_whole_processes(tiny: Path) -> None:
    done = run("start", "--base", tiny, "--length", 3, "--rounds", 1, "--threads", 1, "--json")
    assert done.exit_code == 0, done.stderr
    rows = {row["way"]: row for row in json.loads(done.stdout)["rows"]}
    assert list(rows) == [startup.PYTHON, startup.HELP, startup.LIBRARIES, startup.FIRST, startup.PEFT]
    seconds = {way: row["seconds"]["median"] for way, row in rows.items()}
    for way, limit in ((startup.HELP, startup.PYTHON), (startup.FIRST, startup.LIBRARIES)):
        assert rows[way]["limit / own time"]["median"] == pytest.approx(seconds[limit] / seconds[way])
    faster = rows[startup.FIRST]["times as fast as PEFT"]["median"]
    assert faster == pytest.approx(seconds[startup.PEFT] / seconds[startup.FIRST])


def test_curves_grow_beside_their_operations(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "curves"
    options = ("--of", "owners,prefixes,batch", "--rounds", 1, "--out", out)
    done = run("curves", "--base", tiny, *options, "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    points = {
        name: [row for row in told["rows"] if row["curve"] == name]
        for name in ("owners", "prefixes", "batch")
    }
    assert [row["at"] for row in points["owners"]] == [1, 2, 4, 8, 16]
    assert [row["growth of operations"] for row in points["owners"]] == [1.0] * 5
    assert [row["growth of operations"] for row in points["batch"]] == [1, 2, 4, 8, 16, 32]
    assert all(found[0]["growth"]["median"] == 1 for found in points.values())
    assert all(row["peak MB"] is None for row in told["rows"])
    assert sum("times, the operations 1.00 times" in note for note in told["notes"]) == 2
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_curve_of_memory_takes_the_points_that_are_given(tiny: Path) -> None:
    options = ("--of", "batch", "--points", "1,64", "--memory", "--rounds", 1, "--threads", 1)
    done = run("curves", "--base", tiny, *options, "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    small, large = (row["peak MB"] for row in told["rows"])
    assert large > small >= 0
    assert f"the peak of memory from {small:.0f} to {large:.0f} MB" in told["notes"][-1]


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
    assert {row["way"] for row in json.loads(alone.stdout)["rows"]} == {"Foreword"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("step", "--sizes", "8,x"), "--sizes is '8,x'"),
        (("step", "--sizes", "0"), "above 0"),
        (("step", "--rounds", 0), "rounds"),
        (("generate", "--owners", 0), "owners"),
        (("memory", "--rounds", 0), "rounds"),
        (("machine", "--tokens", 0), "tokens"),
        (("start", "--threads", 0), "threads"),
        (("curves", "--points", "1,2"), "--points are of one curve"),
        (("curves", "--of", "batch", "--points", "1,-2"), "--points is '1,-2'"),
    ],
)
def test_options_out_of_range_are_refused(arguments: tuple[object, ...], told: str) -> None:
    done = run(*arguments, "--base", "nowhere")
    assert done.exit_code == 2
    assert told in done.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--of", "speed"), "--of has 'speed'; expected some of length, batch"),
        (("--of", "batch", "--points", "4,2"), "expected two or more, rising"),
        (("--of", "owners", "--points", "1,3"), "16 rows don't divide among 3 owners"),
        (("--of", "prefixes", "--points", "1,64"), "more than the batch's 32 rows"),
        (("--of", "text", "--points", "8,4096"), "text at 4096: rows of 4096 tokens don't fit"),
    ],
)
def test_curves_that_can_not_be_measured_are_refused_before_they_start(
    tiny: Path, options: tuple[str, ...], told: str
) -> None:
    done = run("curves", "--base", tiny, *options)
    assert done.exit_code == 2
    assert told in done.stderr


def test_a_file_with_too_few_examples_is_refused(tiny: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text('{"source": "a", "target": "b"}\n' * 5)
    done = run("step", "--base", tiny, "--data", few, "--sizes", 4, "--rounds", 2)
    assert done.exit_code == 2
    assert "has 5 examples; these rounds need 12" in done.stderr


def test_invented_examples_repeat_their_sources_and_not_their_texts() -> None:
    made = workload.invented(64)
    assert len(made) == 64
    assert len({example.source for example in made}) == 64 / workload.REFERENCES
    assert workload.invented(64) == made
