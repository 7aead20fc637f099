"""Record: what an owner's run ended in, beside its checkpoints, so that no run is done or kept twice."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foreword import files

if TYPE_CHECKING:
    from foreword.prefix import Prefix

FILE = "result.json"


@dataclass(frozen=True)
class Record:
    """The prefix that a run ended in.

    Attributes:
        digest: of the prefix file.
        created: when; a second writing of the same result is then the same file.
        origin: how it was made, as in the prefix file.
    """

    digest: str
    created: str
    origin: dict[str, Any]


def read_record(folder: Path) -> Record | None:
    """The record of the run in `folder`; None without one, and without one that can be read."""
    try:
        return Record(**json.loads((folder / FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None  # the run is then finished again from its checkpoint, which costs a moment


def write_record(folder: Path, prefix: Prefix) -> None:
    """Note the result of the run in `folder`. Raises CannotWrite."""
    record = Record(prefix.digest, prefix.created, dataclasses.asdict(prefix.origin))
    files.write_text(folder / FILE, json.dumps(dataclasses.asdict(record)), overwrite=True)


def begin_anew(folder: Path) -> None:
    """Remove record and checkpoints; the record first, so that it never speaks of another run."""
    from foreword.training.checkpoint import list_checkpoints

    (folder / FILE).unlink(missing_ok=True)
    for checkpoint in list_checkpoints(folder):
        checkpoint.unlink()
