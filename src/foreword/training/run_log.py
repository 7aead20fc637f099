"""How one run is recorded, reported and kept: log, progress, checkpoints, and a picture of its losses."""

from __future__ import annotations

import io
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from foreword import files
from foreword.errors import CannotWrite, DamagedCheckpoint, UsageError
from foreword.training import checkpoint
from foreword.training.loop import Evaluation, StepReport
from foreword.training.trainer import Trainer

SMOOTHING_STEPS = 10


def draw(
    history: Sequence[dict[str, Any]],
    path: Path,
    *,
    title: str,
    best_step: int | None = None,
    of: str = "target token",
) -> None:
    """Write the picture (PNG) of a run's history.

    Args:
        history: rows with `step` and `token_loss` (of the step's examples) or `dev_loss`.
        best_step: the step that was kept, marked by a line.
        of: what the loss is a mean over.
    """
    # Agg: pictures are drawn where there is no screen; and matplotlib is slow to import.
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    training = [(row["step"], row["token_loss"]) for row in history if "token_loss" in row]
    dev = [(row["step"], row["dev_loss"]) for row in history if "dev_loss" in row]
    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    if training:
        steps, losses = zip(*training, strict=True)
        axes.plot(steps, losses, color="#9db4c8", linewidth=0.8, label="training, each step")
        smooth = [fmean(losses[max(0, i - SMOOTHING_STEPS + 1) : i + 1]) for i in range(len(losses))]
        axes.plot(
            steps, smooth, color="#1f5f99", linewidth=1.6, label=f"training, mean of {SMOOTHING_STEPS} steps"
        )
    if dev:
        axes.plot(*zip(*dev, strict=True), color="#c8501e", marker="o", markersize=4, label="dev")
        if best_step is not None:
            axes.axvline(
                best_step, color="#777777", linestyle=":", linewidth=1, label=f"kept: step {best_step}"
            )
    axes.set_xlabel("step")
    axes.set_ylabel(f"loss per {of} (nats)")
    axes.set_title(title, fontsize=11, parse_math=False)
    axes.grid(alpha=0.25)
    if training or dev:
        axes.legend(frameon=False, fontsize=9)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=130, format="png")
    pyplot.close(figure)
    files.write_bytes(path, picture.getvalue(), overwrite=True)


def _summary_writer(folder: Path | None) -> Any:
    """What writes TensorBoard's files into a run's folder.

    Raises:
        UsageError: no folder, or TensorBoard is not installed.
    """
    if folder is None:
        raise UsageError("tensorboard needs a folder for the run; give checkpoint_dir")
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(
            "tensorboard is not installed; install it with: pip install 'foreword[tensorboard]'"
        ) from error
    return SummaryWriter(str(folder / "tensorboard"))


SPEED_STEPS = 10
"""Steps over which speed and time left are averaged."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands; handed to `on_progress` after every step and evaluation.

    Attributes:
        step, steps: done, and to do.
        owner: whose prefix it is, where there are several.
        loss: mean loss per target token (of preferences, per pair of answers) over the last steps, in nats;
            None before the first.
        dev_loss: the last one measured, in nats.
        best_dev_loss, best_step: the best so far.
        tokens_per_second: real tokens, over the last steps.
        seconds_left: at that speed; evaluations are not counted in.
        note: something to tell the user, once.
        done, total: where the note is what a while in front of or behind training is spent on, how much of it
            is done; such a report comes again and again.
        tokens: real tokens of all steps so far, also of those before the run was resumed; None where the run
            has not been set up yet.
        measures: of preferences, `reward_accuracy` and `reward_margin` over the last steps.
        dev_measures: the same of the last dev examples, as of `dev_loss`.
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
    tokens: int | None = None
    done: int | None = None
    total: int | None = None
    measures: Mapping[str, float] = field(default_factory=dict)
    dev_measures: Mapping[str, float] = field(default_factory=dict)


class RunLog:
    """The record of one run: log, checkpoints, progress.

    Each step and each dev loss is a row of `log.jsonl` in the run's folder, and of TensorBoard where wanted.
    """

    def __init__(
        self,
        trainer: Trainer,
        *,
        folder: Path | None,
        description: dict[str, Any],
        on_progress: Callable[[Progress], None],
        on_checkpoint: Callable[[Path], None] | None = None,
        checkpoint_every: int | None = None,
        tensorboard: bool = False,
        newest: int | None = None,
    ) -> None:
        """Go on from the newest checkpoint in `folder`, if it is one of the run described.

        Args:
            newest: checkpoints of later steps than that are passed over.
            folder: of checkpoints, `log.jsonl` and `curves.png`; None keeps nothing.
            on_checkpoint: called with each checkpoint's file once it is written.

        Raises:
            UsageError: TensorBoard without a folder, or not installed.
            CheckpointMismatch: it is another run's.
            DamagedCheckpoint: there are checkpoints, and none is whole.
            CannotWrite: the folder can't be made.
        """
        self.trainer = trainer
        self.folder = folder
        self._description = description
        self._on_progress = on_progress
        self._on_checkpoint = on_checkpoint
        self._every = checkpoint_every or trainer.resolved.checkpoint_every
        self._recent: deque[StepReport] = deque(maxlen=SPEED_STEPS)
        self._last_dev: Evaluation | None = None
        note = None
        if folder is not None:
            checkpoint.prepare_folder(folder)
            note = self._resume(
                [
                    path
                    for path in checkpoint.list_checkpoints(folder)
                    if newest is None or checkpoint.step_of(path) <= newest
                ]
            )
        self._written = trainer.step
        self._tokens = sum(row.get("tokens", 0) for row in trainer.history)
        self._board = _summary_writer(folder) if tensorboard else None
        # The file begins with what an earlier part of the run did; rows after its checkpoint go.
        self._write_rows("w", trainer.history)
        if note is not None:
            self.note(note)

    @property
    def data_digest(self) -> str:
        """Digest of the training examples."""
        return str(self._description["data"])

    def _resume(self, checkpoints: list[Path]) -> str | None:
        """Go on from the newest checkpoint that is whole; says so, and which were not."""
        damaged: list[str] = []
        for path in reversed(checkpoints):
            try:
                self.trainer.restore(*checkpoint.read(path, self._description))
            except DamagedCheckpoint:
                if path == checkpoints[0]:
                    raise  # none is whole: only the user may remove them and start anew
                damaged.append(path.name)
                continue
            passed_over = f" (damaged and passed over: {', '.join(damaged)})" if damaged else ""
            return f"going on from step {self.trainer.step}: {path}{passed_over}"
        return None

    def note(self, text: str) -> None:
        """Tell the user something, once."""
        trainer = self.trainer
        self._on_progress(
            Progress(trainer.step, trainer.steps, owner=trainer.owner, note=text, tokens=self._tokens)
        )

    def on_step(self, step: StepReport) -> None:
        """Record a step."""
        self._recent.append(step)
        self._tokens += step.tokens
        self._add(
            {
                "step": self.trainer.step,
                "loss": step.loss,
                "token_loss": step.token_loss,
                "gradient_norm": step.norm,
                "learning_rate": step.learning_rate,
                "tokens": step.tokens,
                "seconds": round(step.seconds, 4),
                **step.measures,
            }
        )

    def on_evaluation(self, found: Evaluation) -> None:
        """Record a dev loss, and what was measured beside it."""
        self._last_dev = found
        measures = {f"dev_{name}": value for name, value in found.measures.items()}
        row = {"step": self.trainer.step, "dev_loss": found.loss, **measures}
        self._add({**row, "time": round(time.time(), 1)})

    def save_when_due(self) -> None:
        """Write a checkpoint if the last one is old enough; between steps, after a due evaluation."""
        if self.trainer.step >= self._written + self._every:
            self.save()

    def save(self) -> Path | None:
        """Write a checkpoint."""
        if self.folder is None:
            return None
        tensors, data = self.trainer.state()
        self._written = self.trainer.step
        path = checkpoint.write(self.folder, self.trainer.step, tensors, data, self._description)
        if self._on_checkpoint is not None:
            self._on_checkpoint(path)
        return path

    def finish(self, title: str) -> None:
        """Keep the last checkpoint, draw the curves, and say it if no step was better than the start."""
        if self.trainer.step > self._written or (
            self.folder and not checkpoint.list_checkpoints(self.folder)
        ):
            self.save()
        self.close()
        best = self.trainer.result()
        if self.folder is not None:
            checkpoint.remove_old(self.folder)  # of a run that was killed before it could
            of = "pair of answers" if self.trainer.settings.method == "dpo" else "target token"
            draw(self.trainer.history, self.folder / "curves.png", title=title, best_step=best.step, of=of)
        if best.step < self.trainer.step and best.step == 0:
            self.note(
                f"no step had a lower dev loss than the start, {best.dev_loss:.4f}; the start itself is kept "
                "(steps 0). Another learning rate or more examples may help"
            )

    def close(self) -> None:
        """Write what TensorBoard holds back."""
        if self._board is not None:
            self._board.close()

    def _add(self, row: dict[str, Any]) -> None:
        self.trainer.history.append(row)
        self._write_rows("a", [row])
        if self._board is not None:
            for name, value in row.items():
                if name != "step" and isinstance(value, (int, float)):
                    self._board.add_scalar(name, value, row["step"])
        self._on_progress(self._progress())

    def _write_rows(self, mode: str, rows: Iterable[dict[str, Any]]) -> None:
        if self.folder is None:
            return
        file = self.folder / "log.jsonl"
        try:
            with file.open(mode) as opened:
                opened.write("".join(json.dumps(row) + "\n" for row in rows))
        except OSError as error:
            raise CannotWrite(
                f"{file} could not be written: {error.strerror}; make room, then run the same "
                "command again: it goes on from the last checkpoint"
            ) from error

    def _progress(self) -> Progress:
        trainer, recent = self.trainer, self._recent
        seconds = sum(step.seconds for step in recent)
        evaluated = bool(trainer.best.tensors)
        return Progress(
            step=trainer.step,
            steps=trainer.steps,
            owner=self.trainer.owner,
            loss=sum(step.token_loss for step in recent) / len(recent) if recent else None,
            dev_loss=None if self._last_dev is None else self._last_dev.loss,
            best_dev_loss=trainer.best.dev_loss if evaluated else None,
            best_step=trainer.best.step if evaluated else None,
            tokens_per_second=sum(step.tokens for step in recent) / seconds if seconds else None,
            seconds_left=(trainer.steps - trainer.step) * seconds / len(recent) if recent else None,
            tokens=self._tokens,
            measures={
                name: fmean(step.measures[name] for step in recent)
                for name in (recent[-1].measures if recent else ())
            },
            dev_measures={} if self._last_dev is None else self._last_dev.measures,
        )
