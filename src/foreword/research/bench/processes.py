"""Processes: what has to be measured in one of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from foreword.errors import ForewordError


class MeasurementFailed(ForewordError):
    """The process that was to be measured ended without a figure; says what it wrote."""


def run(what: str, command: Sequence[str], threads: int) -> str:
    """What the command writes to its standard output, computed with so many threads.

    Raises:
        MeasurementFailed: it ended with another status than 0.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        raise MeasurementFailed(f"measuring {what} ended with status {done.returncode}: {last[0]}")
    return done.stdout
