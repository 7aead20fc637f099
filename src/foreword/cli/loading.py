"""Loading: base models, prefixes and data as the options name them, with nothing but notes on the screen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from foreword.base.options import ModelOptions
from foreword.cli.options import DeclaredOptions
from foreword.errors import CannotRead, UnknownModel, UsageError

if TYPE_CHECKING:
    from foreword.base.base_model import BaseModel
    from foreword.examples import Entry, Example
    from foreword.prefix import Prefix

NO_PREFIX = "none"


def load_base(name: str, options: ModelOptions) -> BaseModel:
    """The base model called `name`.

    Raises:
        UsageError: a device that is unknown or absent here, or quantization that can't be had.
        UnknownModel, CannotRead, DownloadFailed, UnsupportedArchitecture: see `BaseModel.load`.
    """
    import torch
    from transformers.utils import logging

    from foreword.base.base_model import BaseModel

    # Bars and remarks about weights are for who writes models, not for who uses one.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    _check_device(torch, options.device)
    return BaseModel.load(name, notify=lambda line: typer.echo(line, err=True), **dataclasses.asdict(options))


def load_prefixes(names: Sequence[str]) -> list[Prefix | None]:
    """Prefix files in the order of `names`; None for `none`. The same file is read once."""
    from foreword.prefix import Prefix

    read = {name: Prefix.load(Path(name)) for name in dict.fromkeys(names) if name != NO_PREFIX}
    return [read.get(name) for name in names]


def load_base_of(
    prefixes: Sequence[Prefix | None],
    base: str | None,
    options: ModelOptions,
    declared: DeclaredOptions,
) -> BaseModel:
    """The base model that was asked for, or else the one that the first prefix names.

    A store is opened only where a prefix was trained for another base, to see what it declares.

    Raises:
        UsageError: neither was given.
        UnknownModel, CannotRead: the prefix names a model that is not to be found from here.
    """
    if base is not None:
        loaded = load_base(base, options)
        others = {prefix.base.fingerprint for prefix in prefixes if prefix is not None}
        others -= {None, loaded.fingerprint}
        if others and declared.place is not None and not others <= loaded.equivalent:
            from foreword.store import PrefixStore

            with PrefixStore(declared.place, blobs=declared.blobs, create=False) as store:
                loaded.equivalent |= store.equivalents(loaded.fingerprint)
        return loaded
    named = next((prefix.base.name for prefix in prefixes if prefix is not None), None)
    if named is None:
        raise UsageError("no base model: give --base, or a --prefix that names one")
    try:
        return load_base(named, options)
    except (UnknownModel, CannotRead) as error:
        raise type(error)(
            f"the prefix was trained for {named!r}, and {error}. Say where it is now with --base"
        ) from error


def _check_device(torch: Any, device: str) -> None:
    if device in ("auto", "balanced"):
        return
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UsageError(
            f"device is {device!r}; expected auto, cpu, cuda, cuda:1, mps or balanced"
        ) from error
    absent = (kind == "cuda" and not torch.cuda.is_available()) or (
        kind == "mps" and not torch.backends.mps.is_available()
    )
    if absent:
        raise UsageError(f"device is {device!r}, but torch finds none here; take --device cpu, or auto")


# -- data of a task, or of any kind --------------------------------------------------------------

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

        entries = entries_of(self.data(path, limit=limit))
        if self.task is None or not groups:
            return entries
        return [replace(entry, owner=entry.category or entry.owner) for entry in entries]

    def training(self, path: Path, *, groups: bool = False) -> list[Example]:
        """An example for each text of the file, but for those that the task marks as unfit for training."""
        from foreword.examples import Example, examples_of

        if self.task is None:
            return [one for one in self.data(path) if isinstance(one, Example)]
        return examples_of(self.entries(path, groups=groups))
