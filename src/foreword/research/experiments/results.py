"""Ledger: what an experiment has finished, a line of JSON for each piece, so that it can go on.

The first line says which experiment with which settings the folder holds. Lines are only ever added, and
flushed to the disk before the next piece begins.

The folder of a run: made, or refused where it holds something else; for one process at a time.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from foreword import files
from foreword.errors import (
    CannotRead,
    CannotWrite,
    CheckpointMismatch,
    DamagedCheckpoint,
    OutputExists,
    OutputInUse,
)
from foreword.research.baselines.registry import Choice, Method, shown

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


# -- Ledger: what an experiment has finished, a line of JSON for each piece, so that it can go on --


class Results:
    """The finished pieces of one run.

    Attributes:
        path: of `results.jsonl`.
        experiment: its name.
        settings: under which all pieces were made.
        pieces: the figures of each, by its name.
        sessions: what each start of the run noted: command, hardware, versions.
    """

    def __init__(self, folder: Path, experiment: str, settings: Mapping[str, Any]) -> None:
        """Begin a run in `folder`, or go on with the one in it; `run_folder.alone` first, to add to it.

        Raises:
            CheckpointMismatch: the folder holds another experiment, or this one with other settings.
            OutputExists: the folder holds files, but no ledger.
            DamagedCheckpoint: a line of the ledger can't be read.
            CannotRead, CannotWrite: no right, no space, or a file of that name.
        """
        self.path = folder / RESULTS
        self.experiment = experiment
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self.pieces: dict[str, dict[str, Any]] = {}
        self.sessions: list[dict[str, Any]] = []
        head = {"experiment": experiment, "settings": self.settings}
        prepare(folder)
        if not self.path.exists():
            files.write_text(self.path, _line(head))
            return
        lines = _read(self.path)
        _check(folder, lines[0], head)
        for line in lines[1:]:
            if "session" in line:
                self.sessions.append(line["session"])
            else:
                self.pieces[line.pop("piece")] = line

    def add(self, piece: str, **figures: Any) -> None:
        """Note a finished piece. JSON has no NaN and no infinity: a figure that is one is noted as None.

        Raises:
            CannotWrite: no right or no space.
        """
        kept = _finite(figures)
        self._append({"piece": piece, **kept})
        self.pieces[piece] = json.loads(json.dumps(kept))

    def begin_session(self, **about: Any) -> None:
        """Note that the run was started, or goes on: by which command, on what."""
        self._append({"session": about})
        self.sessions.append(about)

    def _append(self, line: Mapping[str, Any]) -> None:
        try:
            with open(self.path, "a", encoding="utf-8") as opened:
                opened.write(_line(line))
                opened.flush()
                os.fsync(opened.fileno())
        except OSError as error:
            raise CannotWrite(f"{self.path} could not be written: {error.strerror}") from error


def _finite(value: Any) -> Any:
    """`value` with None for every number in it that is not finite."""
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


def _read(path: Path) -> list[dict[str, Any]]:
    """The lines; one that was cut by a crash is removed from the file, so that the next begins anew."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CannotRead(f"{path} can't be read: {error.strerror}") from error
    whole = content[: content.rfind(b"\n") + 1]
    lines = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise DamagedCheckpoint(
                f"line {number} of {path} is no JSON; remove that line to do its piece again"
            ) from error
        if not isinstance(lines[-1], dict) or not {"experiment", "session", "piece"} & set(lines[-1]):
            raise DamagedCheckpoint(
                f"line {number} of {path} is not one of `foreword reproduce`; choose another folder, or "
                "remove that line"
            )
    if not lines:
        raise DamagedCheckpoint(f"{path} is empty; remove it to begin anew")
    if whole != content:
        files.write_bytes(path, whole, overwrite=True)
    return lines


def _check(folder: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    if found.get("experiment") != expected["experiment"]:
        raise CheckpointMismatch(
            f"{folder} holds a run of {found.get('experiment')!r}, not of {expected['experiment']!r}; "
            "choose another folder"
        )
    old, new = found.get("settings", {}), expected["settings"]
    differences = [
        f"{name} is {new.get(name)!r}, was {old.get(name)!r}"
        for name in dict.fromkeys((*new, *old))
        if new.get(name) != old.get(name)
    ]
    if differences:
        raise CheckpointMismatch(
            f"{folder} holds a run with other settings: {'; '.join(differences)}. Use the same settings to "
            "go on with it, or another folder"
        )


def choice_piece(method: Method, choice: Choice) -> str:
    """Name in the ledger of a point of a grid."""
    return f"grid of {method.name}: {shown(choice)}"


def chosen_piece(method: Method) -> str:
    """Name in the ledger of the prompt that was chosen for a method."""
    return f"choice of {method.name}"


def chosen_before(method: Method, ledger: Results) -> Choice | None:
    """The prompt that earlier trials of the run have. Which prompts fit depends on the subsets, and these may
    grow; trials of one method must not have several. Of rates, the grid gives the same one again."""
    piece = ledger.pieces.get(chosen_piece(method))
    return None if piece is None else dict(piece["choice"])
