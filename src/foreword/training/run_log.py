"""Course: how one learner's run is recorded, reported and kept."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.errors import DamagedCheckpoint
from foreword.training import checkpoint, curves
from foreword.training.log import TrainingLog
from foreword.training.loop import StepReport
from foreword.training.prefix_trainer import Learner

SPEED_WINDOW = 10
"""Steps over which speed and time left are averaged."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands; handed to `on_progress` after every step and evaluation.

    Attributes:
        step, steps: done, and to do.
        owner: whose prefix it is, where there are several.
        loss: mean loss per target token over the last steps, in nats; None before the first.
        dev_loss: the last one measured, in nats.
        best_dev_loss, best_step: the best so far.
        tokens_per_second: real tokens, over the last steps.
        seconds_left: at that speed; evaluations are not counted in.
        note: something to tell the user, once.
    """

    step: int
    steps: int
    owner: str | None = None
    loss: float | None = None
    dev_loss: float | None = None
    best_dev_loss: float | None = None
    best_step: int | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    note: str | None = None


class Course:
    """The record of one learner: log, checkpoints, progress.

    Attributes:
        learner: whose run it is.
        folder: of checkpoints, `log.jsonl` and `curves.png`; None keeps nothing.
    """

    def __init__(
        self,
        learner: Learner,
        *,
        folder: Path | None,
        description: dict[str, Any],
        on_progress: Callable[[Progress], None],
        checkpoint_every: int | None = None,
        tensorboard: bool = False,
        owner: str | None = None,
    ) -> None:
        """Go on from the newest checkpoint in `folder`, if it is one of the run described.

        Raises:
            CheckpointMismatch: it is another run's.
            DamagedCheckpoint: there are checkpoints, and none is whole.
            CannotWrite: the folder can't be made.
        """
        self.learner = learner
        self.folder = folder
        self._description = description
        self._on_progress = on_progress
        self._every = checkpoint_every or max(1, learner.steps // 10)
        self._owner = owner
        self._recent: deque[StepReport] = deque(maxlen=SPEED_WINDOW)
        self._last_dev: float | None = None
        note = None
        if folder is not None:
            checkpoint.prepare_folder(folder)
            note = self._resume(checkpoint.list_checkpoints(folder))
        self._written = learner.step
        self._log = TrainingLog(folder, tensorboard=tensorboard)
        self._log.start(learner.history)
        if note is not None:
            self.note(note)

    def _resume(self, found: list[Path]) -> str | None:
        """Go on from the newest checkpoint that is whole; says so, and which were not."""
        damaged: list[str] = []
        for path in reversed(found):
            try:
                self.learner.restore(*checkpoint.read(path, self._description))
            except DamagedCheckpoint:
                if path == found[0]:
                    raise  # none is whole: nothing is removed or begun anew unasked
                damaged.append(path.name)
                continue
            passed_over = f" (damaged and passed over: {', '.join(damaged)})" if damaged else ""
            return f"going on from step {self.learner.step}: {path}{passed_over}"
        return None

    def note(self, text: str) -> None:
        """Tell the user something, once."""
        self._on_progress(Progress(self.learner.step, self.learner.steps, owner=self._owner, note=text))

    def on_step(self, step: StepReport) -> None:
        """Record a step."""
        self._recent.append(step)
        self._add(
            {
                "step": self.learner.step,
                "loss": step.loss,
                "token_loss": step.token_loss,
                "gradient_norm": step.norm,
                "learning_rate": step.learning_rate,
                "tokens": step.tokens,
                "seconds": round(step.seconds, 4),
            }
        )

    def on_evaluation(self, loss: float) -> None:
        """Record a dev loss."""
        self._last_dev = loss
        self._add({"step": self.learner.step, "dev_loss": loss, "time": round(time.time(), 1)})

    def save_when_due(self) -> None:
        """Write a checkpoint if the last one is old enough; between steps, after a due evaluation."""
        if self.learner.step >= self._written + self._every:
            self.save()

    def save(self) -> Path | None:
        """Write a checkpoint."""
        if self.folder is None:
            return None
        tensors, data = self.learner.state()
        self._written = self.learner.step
        return checkpoint.write(self.folder, self.learner.step, tensors, data, self._description)

    def finish(self, title: str) -> None:
        """Keep the last checkpoint and draw the curves."""
        if self.learner.step > self._written or (
            self.folder and not checkpoint.list_checkpoints(self.folder)
        ):
            self.save()
        self._log.close()
        if self.folder is not None:
            best_step = self.learner.result().step
            curves.draw(self.learner.history, self.folder / "curves.png", title=title, best_step=best_step)

    def close(self) -> None:
        """Close the log of a run that ends before its time."""
        self._log.close()

    def _add(self, row: dict[str, Any]) -> None:
        self.learner.history.append(row)
        self._log.add(row)
        self._on_progress(self._progress())

    def _progress(self) -> Progress:
        learner, recent = self.learner, self._recent
        seconds = sum(step.seconds for step in recent)
        evaluated = bool(learner.best.tensors)
        return Progress(
            step=learner.step,
            steps=learner.steps,
            owner=self._owner,
            loss=sum(step.token_loss for step in recent) / len(recent) if recent else None,
            dev_loss=self._last_dev,
            best_dev_loss=learner.best.dev_loss if evaluated else None,
            best_step=learner.best.step if evaluated else None,
            tokens_per_second=sum(step.tokens for step in recent) / seconds if seconds else None,
            seconds_left=(learner.steps - learner.step) * seconds / len(recent) if recent else None,
        )
