"""Data of experiments that compare methods: a file of examples, or a task's official files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foreword.cli import output
from foreword.cli.loading import Reading
from foreword.errors import BadExamples, UsageError

if TYPE_CHECKING:
    from foreword.base.base_model import BaseModel
    from foreword.research.experiments.plan import Plan
    from foreword.research.experiments.splits import DataSplits

MAX_LENGTH = 512
"""Most tokens of an example."""

TEMPLATE_TOKENS = 8
"""Room for what a template writes: a beginning, a separator, an end."""

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


def read_splits(
    train: Path, dev: Path, test: Path | None, reading: Reading, chosen: Mapping[str, Any], seed: int
) -> DataSplits:
    """Examples to train on, to choose by, and to measure on."""
    from foreword.research.experiments.splits import apart, divide, draw_dev, draw_measured, without_sources

    dev_rows, sources = chosen["dev_rows"], chosen["measured_sources"]
    train_examples, dev_entries = reading.training(train), reading.entries(dev)
    if test is None:
        chosen_by, measured = divide(dev_entries, dev_rows=dev_rows, measured_sources=sources, seed=seed)
    else:
        measured = draw_measured(reading.entries(test), sources, seed)
        others = without_sources(dev_entries, measured)
        if not others:
            raise BadExamples(
                f"every source of {dev} is among those of {test} that are measured; give dev examples that "
                "may choose, or measure on fewer with --measured-sources"
            )
        chosen_by = draw_dev(others, dev_rows, seed)
    splits, left_out = apart(train_examples, chosen_by, {"measured": measured})
    tell_left_out(left_out)
    return splits


def tell_left_out(examples: int) -> None:
    """A note, where training examples were left out."""
    if examples:
        output.note(f"{examples} training examples left out: their source chooses, or is measured")


def decoding_of(task: str | None, beams: int | None) -> dict[str, Any]:
    """Keywords of `generate` for a task, with another number of beams where one is given."""
    from foreword.evaluation import find_task

    decoding = {**find_task(task or USUAL).decoding}
    if beams is not None:
        decoding["beams"] = beams
    if decoding.get("length_penalty") == 1:  # what generate does anyway
        del decoding["length_penalty"]
    return {name: list(value) if isinstance(value, tuple) else value for name, value in decoding.items()}


def max_length_of(task: str | None, given: int | None) -> int:
    """Most tokens of an example: for a task with long sources, room for one and the longest text.

    Raises:
        UsageError: no room for the task's sources beside its longest text.
    """
    from foreword.evaluation import find_task

    known = None if task is None else find_task(task)
    if known is None or known.cut_source is None:
        return MAX_LENGTH if given is None else given
    beside = known.decoding["max_new_tokens"] + TEMPLATE_TOKENS
    if given is not None and given <= beside:
        raise UsageError(
            f"--max-length is {given}; a text of {known.name} takes up to {beside} tokens with what stands "
            "between it and its source. Expected more, so that something is left for the source"
        )
    return int(known.cut_source + beside) if given is None else given


def cut_as_published(splits: DataSplits, task: str | None, plan: Plan, model: BaseModel) -> DataSplits:
    """Sources of a task with long ones, cut alike in training, choosing and measuring; how many is said.

    They are cut where the task has it, or sooner where `max_length` leaves less room beside the longest
    text: training could not have seen more.
    """
    from foreword.evaluation import cut_sources, find_task

    known = None if task is None else find_task(task)
    if known is None or known.cut_source is None:
        return splits
    beside = 0 if model.is_encoder_decoder else plan.decoding["max_new_tokens"] + TEMPLATE_TOKENS
    tokens = min(known.cut_source, plan.max_length - beside)
    train, number = cut_sources(splits.train, model.tokenizer, tokens)
    dev, more = cut_sources(splits.dev, model.tokenizer, tokens)
    parts = {name: cut_sources(part, model.tokenizer, tokens) for name, part in splits.measured.items()}
    measured = sum(cut for _, cut in parts.values())
    if number or more or measured:
        output.note(
            f"sources are cut after {tokens} tokens: {number} of {len(train)} in training, {more} of "
            f"{len(dev)} that choose, {measured} of {sum(map(len, splits.measured.values()))} measured"
        )
    return replace(splits, train=train, dev=dev, measured={name: part for name, (part, _) in parts.items()})


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
