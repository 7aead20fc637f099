"""The command line in this process, in a folder that stands for a user's."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from foreword.cli import app


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The one JSON object on standard output."""
        return json.loads(self.stdout)


def run_command(*arguments: object, input: str | bytes | None = None) -> Outcome:
    """Run a command line in this process."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], input=input)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception  # what a user would see as a traceback
    return Outcome(result.exit_code, result.stdout, result.stderr)


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Commands run in `folder`, with no cache and no hub but its own."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FOREWORD_CACHE", str(folder / "cache"))
        patched.setenv("HF_HUB_OFFLINE", "1")
        patched.chdir(folder)
        yield
