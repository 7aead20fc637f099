"""Data of experiments that compare methods: a file of examples, or a task's official files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foreword.examples import Example
    from foreword.experiments.material import Material

INSTRUCTIONS = {
    "e2e": "Write a short text in English that tells all of these facts.",
    "webnlg": "Write a short text in English that tells all of these facts.",
    "dart": "Write a short text in English that tells all of these facts.",
    "xsum": "Summarize the text in one sentence.",
    "cnn": "Summarize the text in a few sentences.",
    "scitldr": "Summarize the text in one sentence.",
    "aeslc": "Write the subject line of this e-mail.",
}
"""Tasks in words, for methods that prompt."""

USUAL = "e2e"
"""Whose instruction and decoding are taken where no task is named: those of the paper's tables."""


@dataclass(frozen=True)
class Reading:
    """How files are read.

    Attributes:
        task: name of a task whose official files they are, or None.
        format, fields: of `read_examples`, without a task.
    """

    task: str | None
    format: Any
    fields: Mapping[str, str] | None

    def examples(self, path: Path, *, fit_only: bool = False, groups: bool = False) -> list[Example]:
        """An example for each text of the file.

        Args:
            fit_only: leave out texts that the task marks as unfit for training.
            groups: take categories, where the task has any, for owners.
        """
        from foreword.evaluation import find_task, read_task
        from foreword.examples import Example, examples_of, read_examples

        if self.task is None:
            return read_examples(path, format=self.format, fields=self.fields)
        entries = read_task(find_task(self.task), path)
        if not groups:
            return examples_of(entries, fit_only=fit_only)
        return [
            Example(example.source, example.target, entry.category or entry.owner)
            for entry in entries
            for example in examples_of([entry], fit_only=fit_only)
        ]


def read_material(
    train: Path, dev: Path, test: Path | None, reading: Reading, chosen: Mapping[str, Any], seed: int
) -> Material:
    """Examples to train on, to choose by, and to measure on."""
    from foreword.experiments.material import Material, divide, draw_dev, draw_measured

    dev_rows, sources = chosen["dev_rows"], chosen["measured_sources"]
    train_examples, dev_examples = reading.examples(train, fit_only=True), reading.examples(dev)
    if test is None:
        chosen_by, measured = divide(dev_examples, dev_rows=dev_rows, measured_sources=sources, seed=seed)
    else:
        measured = draw_measured(reading.examples(test), sources, seed)
        chosen_by = draw_dev(dev_examples, dev_rows, seed)
    return Material(train_examples, chosen_by, {"measured": measured})


def decoding_of(task: str | None, beams: int | None) -> dict[str, Any]:
    """Keywords of `generate` for a task, with another number of beams where one is given."""
    from foreword.evaluation import find_task

    decoding = {**find_task(task or USUAL).decoding}
    if beams is not None:
        decoding["beams"] = beams
    if decoding.get("length_penalty") == 1:  # what generate does anyway
        del decoding["length_penalty"]
    return {name: list(value) if isinstance(value, tuple) else value for name, value in decoding.items()}


def metrics_of(task: str | None, given: Sequence[str] | None) -> tuple[str, ...]:
    """The metric sets asked for, or the task's, all of them ready.

    Raises:
        UsageError: an unknown set.
        MetricUnavailable: what a set needs is not there; said before hours of work.
    """
    from foreword.evaluation import find_task
    from foreword.evaluation.metrics import require

    chosen = tuple(given) if given is not None else () if task is None else find_task(task).metrics
    require(chosen)
    return chosen
