"""Log: one JSON line per step and per dev evaluation, and TensorBoard when asked."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from foreword.errors import CannotWrite, UsageError


class TrainingLog:
    """Appends rows to `log.jsonl` in a run's folder; without a folder it does nothing."""

    def __init__(self, folder: Path | None, *, tensorboard: bool = False) -> None:
        self._file = None if folder is None else folder / "log.jsonl"
        self._board: Any = None
        if tensorboard:
            if folder is None:
                raise UsageError("tensorboard needs a folder for the run; give checkpoint_dir")
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise UsageError(
                    "tensorboard is not installed; install it with: pip install 'foreword[tensorboard]'"
                ) from error
            self._board = SummaryWriter(str(folder / "tensorboard"))

    def start(self, history: Iterable[dict[str, Any]]) -> None:
        """Begin the file with what an earlier part of the run did; rows after its checkpoint go."""
        if self._file is not None:
            self._write("w", "".join(json.dumps(row) + "\n" for row in history))

    def add(self, row: dict[str, Any]) -> None:
        """Append one row; it has `step`."""
        if self._file is not None:
            self._write("a", json.dumps(row) + "\n")
        if self._board is not None:
            for name, value in row.items():
                if name != "step" and isinstance(value, (int, float)):
                    self._board.add_scalar(name, value, row["step"])

    def _write(self, mode: str, text: str) -> None:
        assert self._file is not None
        try:
            with self._file.open(mode) as opened:
                opened.write(text)
        except OSError as error:
            raise CannotWrite(
                f"{self._file} could not be written: {error.strerror}; make room, then run the same "
                "command again: it goes on from the last checkpoint"
            ) from error

    def close(self) -> None:
        """Flush what TensorBoard holds back."""
        if self._board is not None:
            self._board.close()
