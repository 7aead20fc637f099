"""Result files of jobs: the metrics of each step as CSV, and of a document its report and conversations."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from foreword.serving.jobs import uploads
from foreword.serving.jobs.queue import Job
from foreword.serving.jobs.settings import is_document
from foreword.serving.jobs.uploads import Upload

ResultStyle = Literal["metrics", "report", "conversations"]
METRICS_NAME = "step_metrics.csv"
"""As OpenAI calls the file."""
MOST_ROWS = 10_000
"""Of a file of metrics; of longer runs, every so many steps have a row, and those that were validated."""


def result_files(identifier: str, settings: Mapping[str, Any]) -> dict[str, ResultStyle]:
    """Ids of the files that a job ends in if it succeeds, and what each is."""
    number = identifier.removeprefix("ftjob-")
    if not is_document(settings):
        return {f"file-{number}-metrics": "metrics"}
    found: dict[str, ResultStyle] = {f"file-{number}-report": "report"}
    if settings["keep_conversations"]:
        found[f"file-{number}-conv"] = "conversations"
    return found


def metrics_file(job: Job, log: Path) -> tuple[Upload, bytes]:
    """The metrics of a job's steps as a file to be kept, from the log of its run. Raises OSError."""
    content = metrics_csv(log)
    (identifier,) = result_files(job.id, job.settings)
    return uploads.made(job.owner, METRICS_NAME, "metrics", content, identifier=identifier), content


def metrics_csv(log: Path) -> bytes:
    """The rows of `log.jsonl` as CSV: `step`, `train_loss`, `valid_loss`, and what else was measured.

    A field is empty where nothing was measured at that step, or where it was no number. Raises OSError.
    """
    by_step: dict[int, dict[str, float]] = {}
    with log.open() as lines:
        for line in lines:
            row = json.loads(line)
            by_step.setdefault(row["step"], {}).update(_metrics(row))
    named = dict.fromkeys(name for row in by_step.values() for name in row)
    losses = ("train_loss", "valid_loss")
    columns = ["step", *losses, *sorted(name for name in named if name not in losses)]
    written = io.StringIO()
    writer = csv.DictWriter(written, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({"step": step, **by_step[step]} for step in _kept(by_step))
    return written.getvalue().encode()


_BESIDE = ("step", "loss", "gradient_norm", "learning_rate", "tokens", "seconds", "time")
"""Of a row of the log: no metrics, or (`loss`) one that has another name in `token_loss`."""


def _metrics(row: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a row, in the names of the events of a job."""
    found = {}
    for name, value in row.items():
        if name not in _BESIDE and math.isfinite(value):
            kind = "valid" if name.startswith("dev_") else "train"
            found[f"{kind}_{name.removeprefix('dev_').removeprefix('token_')}"] = value
    return found


def _kept(by_step: Mapping[int, Collection[str]]) -> list[int]:
    """The steps that have a row in the file."""
    apart = -(-len(by_step) // MOST_ROWS)
    last = max(by_step, default=0)
    return [
        step
        for step, metrics in sorted(by_step.items())
        if step % apart == 0 or step == last or "valid_loss" in metrics
    ]
