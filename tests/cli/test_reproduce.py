"""foreword reproduce: one command from data to report, that goes on where it was stopped."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from foreword import Example
from foreword.research.experiments import personalization as experiment
from foreword.research.experiments.results import alone
from support.command_line import Outcome, run_command, working_in
from support.personal_data import owners_examples

SMALL = ("--steps", 6, "--batch-size", 2, "--length", 2, "--dev-rows", 2, "--learning-rate", "0.1")


def write(name: str, examples: Iterable[Example], owner_field: str = "user") -> str:
    rows = ({"source": e.source, "target": e.target, owner_field: e.owner} for e in examples)
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def personalization(base: str) -> tuple[object, ...]:
    train = write("train.jsonl", owners_examples("abc"))
    dev = write("dev.jsonl", owners_examples("abc", count=3, seed=1))
    files = ("--train", train, "--dev", dev, "--owner-field", "user", "--base", base)
    return ("reproduce", "personalization", *files, *SMALL)


@pytest.fixture
def command(base: str) -> tuple[object, ...]:
    return personalization(base)


@pytest.fixture(scope="module")
def whole_run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """Made once: what `command` printed, and the folder of its run, which nothing may change."""
    folder = tmp_path_factory.mktemp("personalization")
    (folder / "tiny").symlink_to(tiny_folder)
    with working_in(folder):
        done = run_command(*personalization("tiny"), "--out", "run")
    assert done.status == 0, done.stderr
    return done, folder / "run"


@pytest.fixture
def finished(whole_run: tuple[Outcome, Path], tmp_path: Path) -> Outcome:
    """That run, as it lies in the folder `run` of this test."""
    done, folder = whole_run
    shutil.copytree(folder, tmp_path / "run")
    return done


def test_the_report_holds_the_figures_of_the_results(finished: Outcome) -> None:
    assert "3 owners; to train: 4 prefixes, to score: 3 owners\n" in finished.stderr
    assert "Own prefix against no prefix" in finished.stdout
    page = Path("run/report.md").read_text()
    lines = [json.loads(line) for line in Path("run/results.jsonl").read_text().splitlines()]
    columns = {line["piece"][-1]: line for line in lines if line.get("piece", "").startswith("losses on")}
    assert sorted(columns) == ["a", "b", "c"]
    for owner, column in columns.items():
        others = [loss for name, loss in column["under"].items() if name != owner]
        figures = (column["none"], column["shared"], column["under"][owner], sum(others) / 2)
        cells = " | ".join(f"{figure:.3f}" for figure in figures)
        assert f"| {owner} | 6 | 2 ({column['tokens']}) | {cells} |" in page
    mean = sum(column["under"][owner] for owner, column in columns.items()) / 3
    assert f"| {mean:.3f} ± " in page
    assert lines[0]["settings"]["base fingerprint"] in page
    assert "18 steps of 2; the owners' prefixes 18 steps of 2 in all" in page
    assert Path("run/matrix.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in Path("run/prefixes").iterdir()) == [
        "@a.prefix",
        "@b.prefix",
        "@c.prefix",
        "shared.prefix",
    ]


def test_the_command_in_the_report_makes_the_same_report(
    run: Any, command: tuple[object, ...], finished: Outcome
) -> None:
    page = Path("run/report.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith("foreword reproduce")]
    words = shlex.split(line)[1:]
    assert [str(word) for word in command] + ["--out", "run"] == sorted_like(words, command)
    Path("run").rename("first")
    assert run(*words).status == 0
    assert Path("run/report.md").read_text() == page


def sorted_like(words: list[str], command: tuple[object, ...]) -> list[str]:
    """The options of `words` in the order in which `command` has them."""
    pairs = dict(zip(words[2::2], words[3::2], strict=True))
    order = [*map(str, command[2::2]), "--out"]
    assert sorted(pairs) == sorted(order)
    return [*words[:2], *(word for name in order for word in (name, pairs[name]))]


def test_the_same_command_goes_on_and_says_what_is_left(
    run: Any, command: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "score_column", interrupted)
        stopped = run(*command, "--out", "run")
    assert stopped.status == 1
    assert not Path("run/report.md").exists()
    done = run(*command, "--out", "run")
    assert done.status == 0, done.stderr
    assert "to train: 0 prefixes, to score: 3 owners" in done.stderr

    kept = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    again = run(*command, "--out", "run")
    assert again.status == 0
    assert "to train" not in again.stderr
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == kept


def test_other_settings_are_refused_and_change_nothing(
    run: Any, command: tuple[object, ...], finished: Outcome
) -> None:
    kept = Path("run/results.jsonl").read_bytes()
    refused = run(*command, "--out", "run", "--seed", 1)
    assert refused.status == 1
    assert "run holds a run with other settings: seed is 1, was 0." in refused.stderr
    fewer = run(*command, "--out", "run", "--owners", 2)
    assert "owners is 2, was 3" in fewer.stderr
    assert Path("run/results.jsonl").read_bytes() == kept


def test_a_folder_at_work_is_refused(run: Any, command: tuple[object, ...]) -> None:
    with alone(Path("run")):
        refused = run(*command, "--out", "run")
    assert refused.status == 1
    assert "another `foreword reproduce` is at work in run" in refused.stderr
    assert not Path("run/results.jsonl").exists()


def test_json_has_the_comparisons(run: Any, command: tuple[object, ...], finished: Outcome) -> None:
    found = run(*command, "--out", "run", "--json").json
    assert found["report"] == "run/report.md"
    assert found["owners"] == 3
    assert set(found["own_against"]) == {"none", "shared", "others"}
    assert found["own_against"]["none"]["verdict"] == "open"  # three owners settle nothing


def test_quick_is_small_where_nothing_else_is_said(run: Any, base: str) -> None:
    train = write("train.jsonl", owners_examples("abcde"))
    dev = write("dev.jsonl", owners_examples("abcde", seed=1))
    files = ("--train", train, "--dev", dev, "--owner-field", "user", "--base", base)
    done = run("reproduce", "personalization", *files, "--out", "run", "--quick", "--steps", 2, "--json")
    assert done.json["owners"] == 4
    settings = json.loads(Path("run/results.jsonl").read_text().splitlines()[0])["settings"]
    assert (settings["steps"], settings["batch_size"], settings["dev examples"]) == (2, 4, 20)
    assert settings["shared_steps"] == 8


def test_a_field_that_is_not_there_is_named(run: Any, base: str) -> None:
    train = write("train.jsonl", owners_examples("ab"), owner_field="user")
    files = ("--train", train, "--dev", train, "--base", base, "--out", "run")
    unnamed = run("reproduce", "personalization", *files)
    assert unnamed.status == 1
    assert "training example 0 has no owner" in unnamed.stderr
    assert "--owner-field" in unnamed.stderr
    wrong = run("reproduce", "personalization", *files, "--owner-field", "sender")
    assert wrong.status == 1
    assert "no field 'sender'" in wrong.stderr
    assert not Path("run").exists()


def test_owners_without_training_data_are_refused_before_anything_is_written(
    run: Any, command: tuple[object, ...]
) -> None:
    write("dev.jsonl", owners_examples("abz"))
    refused = run(*command, "--out", "run")
    assert refused.status == 1
    assert "'z' among them" in refused.stderr
    assert not Path("run").exists()


def test_one_owner_is_wrong_use(run: Any, command: tuple[object, ...]) -> None:
    refused = run(*command, "--out", "run", "--owners", 1)
    assert refused.status == 2
    assert "expected at least 2" in refused.stderr


def test_a_folder_with_something_else_is_refused(run: Any, command: tuple[object, ...]) -> None:
    Path("run").mkdir()
    Path("run/thesis.txt").write_text("mine")
    refused = run(*command, "--out", "run")
    assert refused.status == 1
    assert "run holds thesis.txt, but no run of `foreword reproduce`" in refused.stderr
