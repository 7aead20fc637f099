"""Reading: the data of a command that knows tasks, by path or by name: entries, or examples of any kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foreword.errors import UsageError

if TYPE_CHECKING:
    from foreword.examples import Entry, Example

FROM_HUB = "hub:"
"""What a task's split at the hub begins with, where a path is expected."""


@dataclass(frozen=True)
class Reading:
    """How data is read.

    Attributes:
        task: name of a task whose official files or splits they are, or None.
        format, fields: of `read_examples`, without a task.

    Raises:
        UsageError: a task that does not exist, or one with `format` or `fields`, which it has itself.
    """

    task: str | None
    format: Any = "auto"
    fields: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        from foreword.evaluation import find_task

        if self.task is None:
            return
        find_task(self.task)
        if self.fields or self.format != "auto":
            raise UsageError(
                "--task says how its files are read; leave --format and the options that name fields out"
            )

    def data(self, path: Path, *, limit: int | None = None) -> list[Example | Entry]:
        """The task's entries: of its official files at `path`, or of a split (`hub:dev`); else examples.

        Raises:
            UsageError: a split without a task.
            CannotRead, BadExamples, DownloadFailed: see `read_task`, `fetch_task`, `read_examples`.
        """
        from foreword.evaluation import fetch_task, find_task, read_task
        from foreword.examples import read_examples

        by_name = str(path).startswith(FROM_HUB)
        if self.task is None:
            if by_name:
                raise UsageError(f"{path} is a task's split at the hub; say of which task with --task")
            return [*read_examples(path, format=self.format, fields=self.fields, limit=limit)]
        if by_name:
            return [*fetch_task(find_task(self.task), str(path).removeprefix(FROM_HUB), limit=limit)]
        return [*read_task(find_task(self.task), path, limit=limit)]

    def entries(self, path: Path, *, groups: bool = False, limit: int | None = None) -> list[Entry]:
        """The task's entries, which may have sources in common; without a task, one for each source.

        Args:
            groups: take categories, where the task has any, for owners.
        """
        from foreword.examples import entries_of

        found = entries_of(self.data(path, limit=limit))
        if self.task is None or not groups:
            return found
        return [replace(entry, owner=entry.category or entry.owner) for entry in found]

    def training(self, path: Path, *, groups: bool = False) -> list[Example]:
        """An example for each text of the file, but for those that the task marks as unfit for training."""
        from foreword.examples import Example, examples_of

        if self.task is None:
            return [one for one in self.data(path) if isinstance(one, Example)]
        return examples_of(self.entries(path, groups=groups))
