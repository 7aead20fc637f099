"""Measuring: the loss of one model on a group of entries, and how close the texts that it writes come.

Figures of metric sets are computed of the texts afterwards and are records of their own: a run can have more
metrics later without being made again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foreword.errors import CannotRead, DamagedCheckpoint
from foreword.evaluation import Prediction, token_loss
from foreword.evaluation.metrics import METRICS, score
from foreword.evaluation.metrics.bleu_chrf_rouge import plain_scores
from foreword.evaluation.metrics.meteor import keeping_meteor
from foreword.examples import Entry, source_key
from foreword.generation import generate
from foreword.research.baselines.protocol import EvaluatedModel
from foreword.research.experiments.plan import OnProgress, Plan, Trial, seconds_since
from foreword.research.experiments.results import Results
from foreword.research.experiments.splits import distinct_sources, few_targets

LOSS = "loss"
LOSS_TARGETS = 3
"""References of one entry that the loss is measured on, the first ones; texts are compared with all."""


def measure(
    evaluated: EvaluatedModel, entries: Sequence[Entry], decoding: Mapping[str, Any]
) -> tuple[dict[str, float], list[Prediction]]:
    """The figures of a model on `entries`, and what it wrote, in their order.

    Every distinct source is written for once. Entries of the same source are scored each with its own
    references, as in the official evaluations.

    Args:
        decoding: keywords of `generate`, the same for all that are compared.
    """
    loss = token_loss(
        evaluated.base, few_targets(entries, LOSS_TARGETS), evaluated.prefix, template=evaluated.template
    )
    sources = distinct_sources(entries)
    texts = generate(evaluated.base, sources, evaluated.prefix, template=evaluated.template, **decoding)
    written = {source_key(source): text.strip() for source, text in zip(sources, texts, strict=True)}
    predictions = [
        Prediction(entry.source, entry.references, written[source_key(entry.source)], entry.category)
        for entry in entries
    ]
    compared = plain_scores([each.text for each in predictions], [each.references for each in predictions])
    return {LOSS: loss.mean, **compared}, predictions


def score_key(metric_set: str, trial: Trial) -> str:
    """Name in the results of a set's figures of a trial."""
    return f"{metric_set} figures of {trial.key}"


def rescore(
    results: Results, plan: Plan, metric_sets: Sequence[str], folder: Path, on_progress: OnProgress
) -> None:
    """Compute what the results do not have, of every trial that was measured.

    Raises:
        MetricUnavailable: what a set needs is not there.
        CannotRead, DamagedCheckpoint: a file of texts is absent, or not as it was written.
    """
    waiting = [
        (name, trial)
        for name in metric_sets
        for trial in plan.trials()
        if "figures" in results.records.get(trial.key, {}) and score_key(name, trial) not in results.records
    ]
    with keeping_meteor():
        for number, (name, trial) in enumerate(waiting):
            on_progress("trials scored", number, len(waiting))
            start_time = time.perf_counter()
            figures = {
                group: {f"{name} {figure}": value for figure, value in score([name], *pairs)[name].items()}
                for group, pairs in _texts(folder / "outputs" / trial.outputs).items()
            }
            results.add(score_key(name, trial), figures=figures, seconds=seconds_since(start_time))
    on_progress("trials scored", len(waiting), len(waiting))


def lower_is_better(metric: str) -> bool:
    """Losses and error rates are better when they are low."""
    return metric == LOSS or metric.endswith("TER")


def digits(metric: str) -> int:
    """After the point, as its script prints it; four where two would hide differences of a rate below 1."""
    name, _, figure = metric.partition(" ")
    if figure in ("METEOR", "TER"):
        return 4
    if name in METRICS:
        return next((each.digits for each in METRICS[name].figures if each.name == figure), 2)
    return 3 if metric == LOSS else 2


def _texts(path: Path) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Texts and the references of each, by group."""
    try:
        # Not splitlines, which takes characters that JSON leaves as they are, such as U+2028, for line ends.
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except OSError as error:
        raise CannotRead(f"{path} can't be read: {error.strerror}; its trial is in the results") from error
    by_group: dict[str, tuple[list[str], list[list[str]]]] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            texts, references = by_group.setdefault(row["group"], ([], []))
            texts.append(row["text"])
            references.append(row["references"])
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedCheckpoint(f"line {number} of {path} is not as it was written") from error
    return by_group
