"""Data of commands that know tasks: evaluate and reproduce read and refuse alike."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from foreword.cli.loading import Reading
from foreword.errors import UsageError
from foreword.examples import Entry, Example

FILES = ("--train", "train.jsonl", "--dev", "dev.jsonl", "--out", "run", "--base", "no-such-model")
EVALUATE = ("evaluate", "dev.jsonl", "--base", "no-such-model")
LOW_DATA = ("reproduce", "low-data", *FILES)
EXTRAPOLATION = ("reproduce", "extrapolation", *FILES)
REFUSED = "--task says how its files are read; leave --format and the options that name fields out"


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record = {"document": "Long.", "summary": "Short.", "body": "Other.", "kind": "a"}
    for name in ("train.jsonl", "dev.jsonl"):
        Path(name).write_text(json.dumps(record) + "\n")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Splits that a stand-in of the package `datasets` was asked for; each has other documents."""
    splits: list[str] = []

    def load_dataset(*names: str, split: str) -> list[dict[str, Any]]:
        splits.append(split)
        return [{"document": f"{split} {place}", "summary": f"short {place}"} for place in range(6)]

    stand_in = ModuleType("datasets")
    stand_in.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    return splits


@pytest.mark.parametrize("command", [EVALUATE, LOW_DATA, EXTRAPOLATION], ids=lambda c: c[:2])
@pytest.mark.parametrize(
    "options", [("--format", "jsonl"), ("--source-field", "body"), ("--target-field", "body")]
)
def test_a_task_and_options_that_say_how_files_are_read_exclude_each_other(
    run: Any, command: tuple[str, ...], options: tuple[str, ...]
) -> None:
    done = run(*command, "--task", "xsum", "--metrics", "plain", *options)
    assert (done.status, done.stdout) == (2, "")
    assert REFUSED in done.stderr


@pytest.mark.parametrize(
    ("command", "option"),
    [(EVALUATE, "--owner-field"), (EXTRAPOLATION, "--group-field")],
    ids=lambda c: c[:2],
)
def test_a_task_says_whose_its_entries_are(run: Any, command: tuple[str, ...], option: str) -> None:
    done = run(*command, "--task", "xsum", "--metrics", "plain", option, "kind")
    assert (done.status, done.stdout) == (2, "")
    assert REFUSED in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", "hub:dev", "--base", "no-such-model"),
        ("reproduce", "low-data", "--train", "hub:train", "--dev", "hub:dev", "--out", "run"),
        ("reproduce", "extrapolation", "--train", "hub:train", "--dev", "hub:dev", "--out", "run"),
    ],
    ids=lambda c: c[:2],
)
def test_a_split_at_the_hub_is_some_tasks(run: Any, command: tuple[str, ...]) -> None:
    done = run(*command)
    assert done.status == 2
    assert "is a task's split at the hub; say of which task with --task" in done.stderr


def test_a_split_at_the_hub_is_read_as_the_official_file_is(asked: list[str]) -> None:
    reading = Reading("xsum")
    assert reading.entries(Path("hub:dev"), limit=2) == [
        Entry("validation 0", ("short 0",)),
        Entry("validation 1", ("short 1",)),
    ]
    assert reading.training(Path("hub:train"))[0] == Example("train 0", "short 0")
    assert asked == ["validation", "train"]


def test_reproduce_trains_and_measures_on_splits_at_the_hub(run: Any, base: str, asked: list[str]) -> None:
    splits = ("--train", "hub:train", "--dev", "hub:dev", "--test", "hub:test")
    options = ("--methods", "none", "--others", "", "--sizes", 4, "--subsets", 1, "--untuned", "--beams", 1)
    found = run(
        *("reproduce", "low-data", "--task", "xsum", "--metrics", "plain", *splits, "--base", base, *options),
        *("--dev-rows", 2, "--measured-sources", 3, "--out", "run", "--max-length", 90),
    )
    assert found.status == 0, found.stderr
    assert sorted(asked) == ["test", "train", "validation"]
    (file,) = Path("run/outputs").iterdir()
    sources = [json.loads(line)["source"] for line in file.read_text().splitlines()]
    assert len(sources) == 3
    assert all(source.startswith("test ") for source in sources)


def test_a_task_that_there_is_not_is_said_before_anything_is_read() -> None:
    with pytest.raises(UsageError, match="no task 'glue'"):
        Reading("glue")
