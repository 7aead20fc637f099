"""Merging: what other folders of the same run have finished, taken over into this one.

Trials do not depend on each other. Several processes, or several machines, can each make some of the methods
in a folder of its own; one of the folders then takes over what the others have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foreword import files
from foreword.errors import CannotRead, CannotWrite, CheckpointMismatch, UsageError
from foreword.research.baselines.registry import shown
from foreword.research.experiments.plan import method_of, outputs_of
from foreword.research.experiments.results import RESULTS, Results, alone


def take_over(ledger: Results, other: Path) -> int:
    """Add to `ledger` every piece that `other` has and it has not, with its texts and the starts of its run.

    Returns:
        How many pieces.

    Raises:
        UsageError: `other` is the ledger's own folder.
        CannotRead: no run is in `other`, or a file of it can't be read.
        OutputInUse: a process is at work in it.
        CheckpointMismatch: it holds another run, or one where a method had another learning rate or prompt.
        CannotWrite: no right or no space.
    """
    folder = ledger.path.parent
    if other.resolve() == folder.resolve():
        raise UsageError(f"{other} is the folder of the run itself; name another one to take over from")
    if not (other / RESULTS).exists():
        raise CannotRead(f"{other} has no {RESULTS}; expected a folder of `foreword reproduce`")
    with alone(other):
        theirs = Results(other, ledger.experiment, ledger.settings)
        _check_choices(ledger, theirs, other)
        pieces = {name: piece for name, piece in theirs.pieces.items() if name not in ledger.pieces}
        for name, piece in pieces.items():
            if "figures" in piece and method_of(name) is not None:
                _copy(other / "outputs" / outputs_of(name), folder / "outputs" / outputs_of(name))
        for session in theirs.sessions:
            if pieces and session not in ledger.sessions:
                ledger.begin_session(**session)
        for name, piece in pieces.items():
            ledger.add(name, **piece)
    return len(pieces)


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


def _choices(ledger: Results) -> dict[str, Any]:
    """By method, what its trials were given."""
    return {
        method: piece["choice"]
        for name, piece in ledger.pieces.items()
        if (method := method_of(name)) is not None and piece.get("choice") is not None
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
