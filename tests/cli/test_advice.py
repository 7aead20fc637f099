"""Advice on the command line is given in options and commands, never in Python."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from foreword import PrefixStore
from support.command_line import run_command


@pytest.mark.parametrize(
    ("command", "advice"),
    [
        ("train words.txt --base BASE --out x.prefix", "--format"),
        ("train other.jsonl --base BASE --out x.prefix", "--source-field"),
        ("store delete a/b --store STORE", "--all"),
        ("store show a/b --store STORE", "`foreword store list`"),
        ("store list --store sqlite:///x.db", "FOREWORD_STORE_BLOBS"),
    ],
)
def test_advice_is_given_in_options(tiny_folder: Path, tmp_path: Path, command: str, advice: str) -> None:
    Path("words.txt").write_text("neither this nor that\n")
    Path("other.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    PrefixStore(tmp_path / "store").close()
    places = {"BASE": str(tiny_folder), "STORE": str(tmp_path / "store")}
    outcome = run_command(*(places.get(word, word) for word in command.split()))
    assert outcome.status in (1, 2)
    assert advice in outcome.stderr
    assert not re.search(r"\w=(True|False|None|['\"{])|\w\(\)", outcome.stderr), outcome.stderr
