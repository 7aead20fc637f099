"""What is to be evaluated: data, task, decoding and metrics, from the options of `foreword evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foreword.cli.reading import Reading
from foreword.errors import UsageError

if TYPE_CHECKING:
    from foreword.evaluation import Task
    from foreword.examples import Entry, Example


@dataclass(frozen=True)
class Request:
    """Data and how it is scored.

    Attributes:
        task: named by the user, or None.
        metrics: those asked for, else the task's.
        unseen: those categories asked for, else the task's that the data has.
    """

    task: Task | None
    data: list[Example | Entry]
    metrics: tuple[str, ...]
    unseen: tuple[str, ...]


def read_request(
    data: Path,
    *,
    task: str | None,
    metrics: Sequence[str],
    unseen: Sequence[str],
    format: Any,
    fields: Mapping[str, str] | None,
    limit: int | None,
) -> Request:
    """Read the data: a task's official files, its split at the hub (`hub:dev`), or examples of any kind.

    Raises:
        UsageError: a task that does not exist, or options that exclude each other.
        MetricUnavailable: what a metric needs is not there.
        CannotRead, BadExamples, DownloadFailed: see `Reading`.
    """
    from foreword.evaluation import find_task
    from foreword.evaluation.metrics import find_metrics, require
    from foreword.evaluation.task_data import check_categories
    from foreword.examples import Entry

    found = None if task is None else find_task(task)
    chosen = tuple(metrics) or (() if found is None else found.metrics)
    find_metrics(chosen)
    if found is None and unseen:
        raise UsageError("--unseen names categories, which the data of some tasks has; give --task")
    read = Reading(task, format, fields).data(data, limit=limit)
    entries = [one for one in read if isinstance(one, Entry)]
    check_categories(unseen, entries)
    require(chosen)
    there = {entry.category for entry in entries}
    usual = () if found is None else tuple(sorted(found.unseen & there))
    return Request(found, read, chosen, tuple(unseen) or usual)


def chosen_decoding(task: Task | None, given: Mapping[str, Any], named: set[str]) -> dict[str, Any]:
    """The decoding options: those that the user named, then the task's, then the command's defaults."""
    if task is None:
        return dict(given)
    return {name: given[name] if name in named else task.decoding.get(name, given[name]) for name in given}
