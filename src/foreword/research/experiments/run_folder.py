"""The folder of a run: made, or refused where it holds something else; for one process at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from foreword.errors import CannotWrite, OutputExists, OutputInUse

RESULTS = "results.jsonl"
LOCK = ".lock"


def prepare(folder: Path) -> None:
    """Make the folder, or see that it holds a run, or nothing.

    Raises:
        OutputExists: it holds files, but no ledger.
        CannotWrite: no right, no space, or a file of that name.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = sorted(entry.name for entry in folder.iterdir() if entry.name != LOCK)
    except OSError as error:
        raise CannotWrite(f"the folder {folder} can't be made: {error.strerror}; choose another") from error
    if found and RESULTS not in found:
        raise OutputExists(
            f"{folder} holds {found[0]}, but no run of `foreword reproduce`; choose a new folder"
        )


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Have the folder for this process, so that no piece is made twice.

    The lock is the operating system's: it ends with its process, however that ends.

    Raises:
        OutputInUse: another process has it.
        OutputExists, CannotWrite: see `prepare`.
    """
    from filelock import FileLock, Timeout

    prepare(folder)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise OutputInUse(
            f"another `foreword reproduce` is at work in {folder}; wait until it ends, stop it, or choose "
            "another folder. What it has finished is kept"
        ) from error
    except OSError as error:
        raise CannotWrite(f"{folder / LOCK} can't be locked: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()
