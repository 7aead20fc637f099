"""The code does to the bit what it did when the runs were recorded; README.md says what to do if not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RECORD = Path(__file__).with_name("record.py")


def check(name: str) -> None:
    """In a process of its own, as a person would: what ran before it must not matter."""
    done = subprocess.run([sys.executable, str(RECORD), "--check", name], capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    if "NOT COMPARED" in done.stdout:
        pytest.skip(done.stdout.strip())


@pytest.mark.parametrize("name", ["train-tiny", "generate-tiny", "server"])
def test_a_recorded_run_of_tiny_models_is_reproduced(name: str) -> None:
    check(name)


@pytest.mark.real_model
@pytest.mark.parametrize("name", ["train-smollm2", "generate-smollm2"])
def test_a_recorded_run_of_smollm2_is_reproduced(name: str) -> None:
    check(name)


def test_every_recording_is_checked_here() -> None:
    kept = {path.stem for path in RECORD.parent.glob("*.json")}
    assert kept == {"train-tiny", "generate-tiny", "server", "train-smollm2", "generate-smollm2"}
