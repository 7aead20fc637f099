"""foreword train --method dpo: a prefix, or one for each owner, from preferences between two answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from foreword import BaseModel, Prefix, train
from foreword.examples import read_preferences

QUICK = ("--method", "dpo", "--length", 3, "--steps", 6, "--batch-size", 3)


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    records = [
        {
            "prompt": f"{a}{b}",
            "chosen": "yes yes",
            "rejected": "no no",
            "owner": "alice" if a < "c" else "bob",
        }
        for a in "abcd"
        for b in "efgh"
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return "pairs.jsonl"


def test_the_command_trains_what_python_does(run: Any, base: str, pairs: str) -> None:
    done = run("train", pairs, "--dev", pairs, "--base", base, "--out", "x.prefix", "--beta", 0.3, *QUICK)
    assert done.status == 0, done.stderr
    assert "dev accuracy" in done.stderr
    prefix = Prefix.load("x.prefix")
    preferences = read_preferences(pairs)
    expected = train(
        BaseModel.load(base),
        preferences,
        dev=preferences,
        method="dpo",
        beta=0.3,
        length=3,
        steps=6,
        batch_size=3,
    )
    assert all(torch.equal(prefix.tensors[name], expected.tensors[name]) for name in expected.tensors)
    assert prefix.report == expected.report
    rows = [json.loads(line) for line in Path("x.run/log.jsonl").read_text().splitlines()]
    assert any("dev_reward_accuracy" in row for row in rows)
    again = run("train", pairs, "--base", base, "--out", "y.prefix", "--start", "x.prefix", "--json", *QUICK)
    assert again.json["report"] == {"method": "dpo", "beta": 0.1}
    assert Prefix.load("y.prefix").origin.initialization.startswith("prefix ")


def test_fields_of_a_table_can_have_other_names(run: Any, base: str) -> None:
    Path("pairs.csv").write_text("question,good,bad\na,yes,no\nb,yes,no\n")
    options = ("--fields", "prompt=question,chosen=good,rejected=bad", *QUICK)
    done = run("train", "pairs.csv", "--base", base, "--out", "x.prefix", *options)
    assert done.status == 0, done.stderr
    assert "note: read 2 preferences: pairs of answers" in done.stderr
    done = run("train", "pairs.csv", "--base", base, "--out", "y.prefix", *QUICK)
    assert done.status == 1
    assert "found 'question,good,bad'; expected a line that names the columns chosen, rejected" in done.stderr
    assert "say so with --fields chosen=NAME or --fields rejected=NAME" in done.stderr


def test_each_owner_gets_a_prefix_of_their_own_preferences(run: Any, base: str, pairs: str) -> None:
    done = run("train", pairs, "--by", "owner", "--base", base, "--out", "out", *QUICK)
    assert done.status == 0, done.stderr
    assert sorted(path.name for path in Path("out").iterdir()) == ["alice.prefix", "bob.prefix"]
    assert Prefix.load("out/bob.prefix").origin.examples == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "dpo", "--target-field", "x"), "--target-field is given, but --method dpo learns from"),
        (("--method", "dpo", "--format", "csv"), "--format is csv, but --method dpo reads preferences"),
        (
            ("--method", "dpo", "--reduction", "sequence"),
            "--reduction is 'sequence', which is about target tokens",
        ),
        (("--beta", 0.3), "--beta is 0.3, and the method is supervised, which has none"),
    ],
)
def test_what_does_nothing_under_a_method_is_refused(
    run: Any, base: str, pairs: str, options: tuple[Any, ...], message: str
) -> None:
    done = run("train", pairs, "--base", base, "--out", "x.prefix", *options)
    assert done.status == 2
    assert message in done.stderr


def test_a_file_for_the_other_method_is_refused_in_options(
    run: Any, base: str, pairs: str, data: str
) -> None:
    done = run("train", pairs, "--base", base, "--out", "x.prefix")
    assert done.status == 1
    assert "a preference between two answers" in done.stderr
    assert "take --method dpo" in done.stderr
    done = run("train", data, "--base", base, "--out", "x.prefix", *QUICK)
    assert done.status == 1
    assert "no preference; found 'source', 'target'" in done.stderr
    assert "leave --method dpo out" in done.stderr
    assert "method=" not in done.stderr
