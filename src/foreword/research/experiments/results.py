"""Results of a run: a line of JSON for each finished part, so that a run can go on, and be put together.

`results.jsonl` begins with a line that says which experiment with which settings the folder holds. Lines are
only ever added, and flushed to the disk before the next part begins. Each part is a record under a name (the
key `piece` in the file). One process at a time works in a folder; other folders of the same run, made by
other processes or machines, can be taken over.
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
    UsageError,
)
from foreword.research.baselines.registry import Choice, Method, shown
from foreword.research.experiments.plan import method_of, outputs_of

RESULTS = "results.jsonl"
LOCK = ".lock"


def prepare(folder: Path) -> None:
    """Make the folder, or see that it holds a run, or nothing.

    Raises:
        OutputExists: it holds files, but no results.
        CannotWrite: no right, no space, or a file of that name.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        present = sorted(entry.name for entry in folder.iterdir() if entry.name != LOCK)
    except OSError as error:
        raise CannotWrite(f"the folder {folder} can't be made: {error.strerror}; choose another") from error
    if present and RESULTS not in present:
        raise OutputExists(
            f"{folder} holds {present[0]}, but no run of `foreword reproduce`; choose a new folder"
        )


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Have the folder for this process, so that no part is made twice.

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


class Results:
    """The finished parts of one run.

    Attributes:
        path: of `results.jsonl`.
        settings: under which all parts were made.
        records: the figures of each part, by its name.
        sessions: what each start of the run noted: command, hardware, versions.
    """

    def __init__(self, folder: Path, experiment: str, settings: Mapping[str, Any]) -> None:
        """Begin a run in `folder`, or go on with the one in it; `alone` first, to add to it.

        Raises:
            CheckpointMismatch: the folder holds another experiment, or this one with other settings.
            OutputExists: the folder holds files, but no results.
            DamagedCheckpoint: a line of the results can't be read.
            CannotRead, CannotWrite: no right, no space, or a file of that name.
        """
        self.path = folder / RESULTS
        self.experiment = experiment
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self.records: dict[str, dict[str, Any]] = {}
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
                self.records[line.pop("piece")] = line

    def add(self, name: str, **figures: Any) -> None:
        """Note a finished part. JSON has no NaN and no infinity: a figure that is one is noted as None.

        Raises:
            CannotWrite: no right or no space.
        """
        record = _finite(figures)
        self._append({"piece": name, **record})
        self.records[name] = json.loads(json.dumps(record))

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
    """The lines; one that was cut by a crash is removed from the file, so that its part is made again."""
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


def _check(folder: Path, head: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    if head.get("experiment") != expected["experiment"]:
        raise CheckpointMismatch(
            f"{folder} holds a run of {head.get('experiment')!r}, not of {expected['experiment']!r}; "
            "choose another folder"
        )
    old, new = head.get("settings", {}), expected["settings"]
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


def choice_key(method: Method, choice: Choice) -> str:
    """Name in the results of a point of a grid."""
    return f"grid of {method.name}: {shown(choice)}"


def chosen_key(method: Method) -> str:
    """Name in the results of the prompt that was chosen for a method."""
    return f"choice of {method.name}"


def chosen_before(method: Method, results: Results) -> Choice | None:
    """The prompt that earlier trials of the run have. Which prompts fit depends on the subsets, and these may
    grow; trials of one method must not have several. Of rates, the grid gives the same one again."""
    record = results.records.get(chosen_key(method))
    return None if record is None else dict(record["choice"])


def take_over(results: Results, other: Path) -> int:
    """Add every record that `other` has and `results` has not, with its texts and the starts of its run.

    Trials do not depend on each other: several processes, or machines, can each make some of the methods in a
    folder of its own; one of the folders then takes over what the others have.

    Returns:
        How many records.

    Raises:
        UsageError: `other` is the folder of `results` itself.
        CannotRead: no run is in `other`, or a file of it can't be read.
        OutputInUse: a process is at work in it.
        CheckpointMismatch: it holds another run, or one where a method had another learning rate or prompt.
        CannotWrite: no right or no space.
    """
    folder = results.path.parent
    if other.resolve() == folder.resolve():
        raise UsageError(f"{other} is the folder of the run itself; name another one to take over from")
    if not (other / RESULTS).exists():
        raise CannotRead(f"{other} has no {RESULTS}; expected a folder of `foreword reproduce`")
    with alone(other):
        theirs = Results(other, results.experiment, results.settings)
        _check_choices(results, theirs, other)
        records = {name: record for name, record in theirs.records.items() if name not in results.records}
        for name, record in records.items():
            if "figures" in record and method_of(name) is not None:
                _copy(other / "outputs" / outputs_of(name), folder / "outputs" / outputs_of(name))
        for session in theirs.sessions:
            if records and session not in results.sessions:
                results.begin_session(**session)
        for name, record in records.items():
            results.add(name, **record)
    return len(records)


def _check_choices(ours: Results, theirs: Results, other: Path) -> None:
    """Trials of a method have one learning rate, or one prompt, in a run."""
    here, there = _choices(ours), _choices(theirs)
    for method in here.keys() & there.keys():
        if here[method] != there[method]:
            raise CheckpointMismatch(
                f"{method} was tried with {shown(there[method])} in {other}, and with {shown(here[method])} "
                f"in {ours.path.parent}: trials with different choices can't be put together. Leave that "
                "folder out"
            )


def _choices(results: Results) -> dict[str, Any]:
    """By method, what its trials were given."""
    return {
        method: record["choice"]
        for name, record in results.records.items()
        if (method := method_of(name)) is not None and record.get("choice") is not None
    }


def _copy(source: Path, target: Path) -> None:
    try:
        content = source.read_bytes()
    except OSError as error:
        raise CannotRead(f"{source} can't be read: {error.strerror}; its trial is in the results") from error
    try:
        target.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"{target.parent} can't be made: {error.strerror}") from error
    files.write_bytes(target, content, overwrite=True)
