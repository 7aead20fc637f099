"""foreword bench quality: who is where after how many steps; never how fast."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from foreword.cli import app
from foreword.research.bench.time_to_quality import DIRECT, PROJECTED, Run, best, race
from support.saved_bases import save_tiny


def falling(log: list[str], name: str, steps: int, watched: int, losses: list[float]) -> Run:
    """A run whose dev loss after n steps is the n-th of `losses`."""
    done = 0

    def step(number: int) -> None:
        nonlocal done
        assert number == done
        done += 1
        log.append(f"{name}{number}")

    return Run(step, lambda: losses[done - 1], steps, watched)


def test_runs_take_turns_and_are_looked_at_when_they_should() -> None:
    log: list[str] = []
    runs = {
        "a": falling(log, "a", 2, 1, [5.0, 4.0]),
        "b": falling(log, "b", 5, 2, [9.0, 8.0, 7.0, 6.0, 4.5]),
    }
    race(runs)
    assert log == ["a0", "b0", "a1", "b1", "b2", "b3", "b4"]
    assert {at: loss for at, (loss, _) in runs["b"].run_log.items()} == {2: 8.0, 4: 6.0, 5: 4.5}
    assert runs["b"].end[0] == 4.5
    steps, seconds = runs["b"].reached(6.5) or (0, 0.0)
    assert steps == 4
    assert 0 < seconds < runs["b"].seconds
    assert runs["a"].reached(3.9) is None


def test_the_better_rate_of_a_form_counts() -> None:
    runs = {}
    for name, loss in {f"{DIRECT}, 1": 3.0, f"{DIRECT}, 2": 2.0, f"{PROJECTED}, 1": 1.0}.items():
        runs[name] = Run(lambda number: None, lambda loss=loss: loss, 1, 1)
    race(runs)
    assert best(runs, DIRECT) == f"{DIRECT}, 2"
    assert best(runs, PROJECTED) == f"{PROJECTED}, 1"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    for name, count in (("train", 6), ("dev", 2)):
        lines = [json.dumps({"source": f"{name} {i}", "target": f"text {i}"}) for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "train.jsonl", tmp_path / "dev.jsonl"


def test_the_race_is_told(files: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="the peer is not installed")
    base = save_tiny(tmp_path / "tiny", max_position_embeddings=512)
    arguments = ["bench", "quality", "--train", str(files[0]), "--dev", str(files[1]), "--base", str(base)]
    arguments += [
        "--steps",
        "3",
        "--own-steps",
        "2",
        "--watched",
        "1",
        "--size",
        "2",
        "--length",
        "3",
        "--json",
    ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [(row["run"], row["steps"]) for row in rows] == [
        ("Foreword", 2),
        ("PEFT, direct, 0.001", 3),
        ("PEFT, direct, 0.01", 3),
        ("PEFT, projection, 0.001", 3),
        ("PEFT, projection, 0.01", 3),
    ]
    assert rows[0]["share of PEFT's time"] is None
    for form in (rows[1:3], rows[3:5]):
        worse, better = sorted(form, key=lambda row: -row["dev loss at its end"])
        assert worse["share of PEFT's time"] is None
        assert better["share of PEFT's time"] is not None


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--direct-rates", "fast"], "--direct-rates is 'fast'"),
        (["--projected-rates", "0"], "--projected-rates is '0'"),
        (["--size", "7"], "6 examples and 2 dev examples"),
    ],
)
def test_what_can_not_be_raced_is_refused(
    files: tuple[Path, Path], tmp_path: Path, more: list[str], told: str
) -> None:
    pytest.importorskip("peft", reason="the peer is not installed")
    base = save_tiny(tmp_path / "tiny", max_position_embeddings=512)
    arguments = ["bench", "quality", "--train", str(files[0]), "--dev", str(files[1]), "--base", str(base)]
    done = CliRunner().invoke(app, [*arguments, *more])
    assert done.exit_code == 2
    assert told in " ".join(done.stderr.split())
