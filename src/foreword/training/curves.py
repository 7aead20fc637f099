"""Curves: a picture of loss and dev loss over the steps of a run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foreword import files

SMOOTHING_STEPS = 10


def draw(history: Sequence[dict[str, Any]], path: Path, *, title: str, best_step: int | None = None) -> None:
    """Write the picture (PNG) of a run's history.

    Args:
        history: rows with `step` and `token_loss` (of the step's examples) or `dev_loss`.
        best_step: the step that was kept, marked by a line.
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
        smooth = [_mean(losses[max(0, i - SMOOTHING_STEPS + 1) : i + 1]) for i in range(len(losses))]
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
    axes.set_ylabel("loss per target token (nats)")
    axes.set_title(title, fontsize=11, parse_math=False)
    axes.grid(alpha=0.25)
    if training or dev:
        axes.legend(frameon=False, fontsize=9)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=130, format="png")
    pyplot.close(figure)
    files.write_bytes(path, picture.getvalue(), overwrite=True)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
