"""The command line on a tiny model in a folder, in this process or in one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.command_line import Outcome, run_command, working_in
from support.saved_bases import save_tiny
from support.stand_ins import random_examples


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path) -> Iterator[None]:
    """Commands run in a folder of their own, with no cache and no hub but theirs."""
    with working_in(tmp_path):
        yield


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model's folder."""
    return save_tiny(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture
def base(tiny_folder: Path, tmp_path: Path) -> str:
    """The tiny model as a user names it: a folder beside the data."""
    (tmp_path / "tiny").symlink_to(tiny_folder)
    return "tiny"


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Name of a file of 12 examples."""
    rows = [{"source": e.source, "target": e.target} for e in random_examples(12)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "data.jsonl"


@pytest.fixture
def run() -> Callable[..., Outcome]:
    """Run a command line in this process."""
    return run_command


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[str]]:
    """Start a command line in a process of its own."""

    def start(*arguments: object) -> subprocess.Popen[str]:
        program = "import torch; torch.set_num_threads(1); from foreword.cli import main; main()"
        return subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
        )

    return start


@pytest.fixture
def trained(run: Callable[..., Outcome], base: str, data: str) -> str:
    """Name of a prefix of the tiny model."""
    done = run("train", data, "--base", base, "--out", "a.prefix", "--length", 3, "--steps", 4)
    assert done.status == 0, done.stderr
    return "a.prefix"
