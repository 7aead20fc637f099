"""Training that an earlier release began is gone on with, and ends in the prefix that it would have made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from foreword import BaseModel, Prefix, PrefixStore
from upgrade import runs, surface

FOLDER = surface.FIXTURES / "runs"
EXPECTED = surface.recorded("runs/expected.json")
COMMANDS = surface.recorded("commands/expected.json")
LOGGED = {"step", "loss", "token_loss", "gradient_norm", "learning_rate", "tokens", "seconds"}


def steps_of(log: Path) -> list[int]:
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return [row["step"] for row in rows if set(row) >= LOGGED]


@pytest.mark.parametrize("name", runs.RUNS)
def test_a_run_goes_on_from_its_checkpoint(
    models: dict[str, BaseModel], tmp_path: Path, check_result: Any, name: str
) -> None:
    shutil.copytree(FOLDER / name, tmp_path / "run")
    begun: list[int] = []
    base = models[runs.RUNS[name].get("$base", "tiny-llama")]
    prefix = runs.run_one(name, base, tmp_path / "run", lambda progress: begun.append(progress.step))
    assert begun[0] == 8, "began anew"  # the checkpoint's step; the log was two steps further
    check_result(prefix, EXPECTED["one"][name], FOLDER / f"{name}.prefix", EXPECTED["machine"])
    steps = steps_of(tmp_path / "run" / "log.jsonl")
    assert steps == list(range(1, len(steps) + 1))
    before = Prefix.load(FOLDER / f"{name}.prefix")
    assert prefix.origin.steps == before.origin.steps
    assert prefix.origin.data_digest == before.origin.data_digest


def test_a_run_of_many_owners_goes_on_from_their_checkpoints(
    models: dict[str, BaseModel], tmp_path: Path, check_result: Any
) -> None:
    shutil.copytree(FOLDER / "many", tmp_path / "many")
    first: dict[str, int] = {}
    made = runs.run_many(
        models["tiny-llama"],
        tmp_path / "many",
        lambda progress: first.setdefault(progress.owner or "", progress.step),
    )
    # Two were in the middle, two steps behind their last checkpoint; the third had not begun.
    assert (first["anna"], first["ben/2"]) == (12, 12)
    assert first["çelik"] <= 1
    for owner, expected in EXPECTED["many"].items():
        check_result(made[owner], expected, FOLDER / expected["file"], EXPECTED["machine"])


@pytest.mark.parametrize("name", COMMANDS["lines"])
def test_a_command_goes_on_where_it_was_killed(
    here: Path, check_result: Any, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    shutil.copytree(surface.FIXTURES / "commands" / name, here, dirs_exist_ok=True)
    if (here / "store").exists():
        assert runs.call(COMMANDS["lines"][name]) != 0
        assert "foreword store migrate" in capsys.readouterr().err
        runs.migrate(lambda: PrefixStore("store", create=False), ["--store", "store"])
        capsys.readouterr()
    kept = {path: path.read_bytes() for path in here.rglob("*.prefix") if path.is_file()}
    assert runs.call(COMMANDS["lines"][name]) == 0, capsys.readouterr().err
    told = capsys.readouterr().err
    if name == "one":
        assert "going on from step 6" in told
    else:
        assert "1 owners are done already, 1 go on from their checkpoints" in told
    for where, expected in COMMANDS["results"][name].items():
        file = surface.FIXTURES / "commands" / expected["file"]
        if "@" in where:
            with PrefixStore(here / "store") as store:
                assert len(store.describe(where).numbers) == 1  # the owner who was done got no second version
                prefix = store.get(where)
        else:
            prefix = Prefix.load(here / where)
        check_result(prefix, expected, file, COMMANDS["machine"])
    for path, content in kept.items():
        assert path.read_bytes() == content
