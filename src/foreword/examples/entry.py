"""Entry: one source of a task's data with every text that people wrote for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from foreword.examples.example import Example
from foreword.examples.grouping import source_key
from foreword.template import Source


@dataclass(frozen=True, slots=True)
class Entry:
    """What official scripts count as one: it is generated once, and scored against all its references.

    Two entries may have the same source; they stay two, as in the official evaluations. (Merged, outputs
    and references of the original prefix-tuning code fell out of step.)

    Attributes:
        source: as the model reads it.
        references: at least one.
        category: what the data calls its kind (WebNLG: Airport, Food, ...), or None.
        owner: whose it is, or None.
        unfit: references that are scored against but not trained on (WebNLG: comment other than good).
    """

    source: Source
    references: tuple[str, ...]
    category: str | None = None
    owner: str | None = None
    unfit: tuple[str, ...] = ()


def entries_of(data: Iterable[Example | Entry]) -> list[Entry]:
    """Entries as they are; examples of one source (and owner) brought together, where the first stood."""
    groups: dict[object, Entry | list[Example]] = {}
    for place, one in enumerate(data):
        if isinstance(one, Entry):
            groups[place] = one
            continue
        group = groups.setdefault((one.owner, source_key(one.source)), [])
        assert isinstance(group, list)
        group.append(one)
    return [one if isinstance(one, Entry) else _together(one) for one in groups.values()]


def _together(examples: list[Example]) -> Entry:
    first = examples[0]
    return Entry(first.source, tuple(example.target for example in examples), owner=first.owner)


def references(examples: Iterable[Example]) -> list[tuple[Source, list[str]]]:
    """Each distinct source of each owner with all its targets, for metrics with several references.

    Sources come in the order in which they are first seen, targets in theirs; nothing is dropped.
    """
    return [(entry.source, list(entry.references)) for entry in entries_of(examples)]


def examples_of(entries: Sequence[Entry], *, fit_only: bool = True) -> list[Example]:
    """An example for each reference.

    Args:
        fit_only: leave out the references marked as not fit for training.
    """
    return [
        Example(entry.source, reference, entry.owner)
        for entry in entries
        for reference in entry.references
        if not (fit_only and reference in entry.unfit)
    ]
