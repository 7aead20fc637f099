"""Splits: what is trained on, what chooses steps and rates, and what is measured, with no source in common.

`split_by_group` also holds groups out, such as categories or users, that training and choices never see.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from foreword.errors import BadExamples, UsageError
from foreword.examples import Entry, Example, digest, entries_of, examples_of, source_key
from foreword.template import Source

Some = TypeVar("Some", Example, Entry, Example | Entry)
GroupOf = Callable[[Example | Entry], str | None]

SHARE = 3
"""Where no groups are named, one in so many is held out."""


@dataclass(frozen=True)
class DataSplits:
    """The data of an experiment.

    Attributes:
        train: from which subsets are drawn.
        dev: by which the best step and each method's learning rate are chosen; one target for a source.
        measured: by the name of a group, entries whose sources no choice has seen, with all references. Two
            may have the same source where the official scripts of a task count them as two.
    """

    train: Sequence[Example]
    dev: Sequence[Example]
    measured: Mapping[str, Sequence[Entry]]

    def counts(self) -> dict[str, int]:
        """How many examples; of what is measured, how many references."""
        return {
            "train examples": len(self.train),
            "dev examples": len(self.dev),
            **{
                f"measured: {name}": sum(len(entry.references) for entry in entries)
                for name, entries in self.measured.items()
            },
        }

    def digests(self) -> dict[str, str | int]:
        """What tells this data from other data."""
        pairs = {name: examples_of(entries, fit_only=False) for name, entries in self.measured.items()}
        return {
            "train digest": digest(self.train),
            "dev digest": digest(self.dev),
            **{f"{name} digest": digest(examples) for name, examples in pairs.items()},
            # Examples don't tell entries of the same source apart.
            **{
                f"{name} entries": len(entries)
                for name, entries in self.measured.items()
                if len(distinct_sources(entries)) < len(entries)
            },
        }

    def subset(self, size: int, seed: int, name: str) -> list[Example]:
        """`size` training examples, drawn by seed and name; the same whatever else is drawn.

        Raises:
            UsageError: more than there are.
        """
        if size > len(self.train):
            raise UsageError(f"{size} training examples are asked for, and there are {len(self.train)}")
        if size == len(self.train):
            return list(self.train)
        drawn = random.Random(f"{seed}/{size}/{name}")
        return [self.train[place] for place in drawn.sample(range(len(self.train)), size)]


def apart(
    train: Sequence[Example], dev: Sequence[Example], measured: Mapping[str, Sequence[Entry]]
) -> tuple[DataSplits, int]:
    """Splits that train on no source that chooses or is measured, and how many examples that left out.

    Raises:
        BadExamples: no training example is left.
    """
    kept = without_sources(train, [*dev, *(entry for entries in measured.values() for entry in entries)])
    if train and not kept:
        raise BadExamples(
            f"the sources of all {len(train)} training examples are among those that choose or are measured; "
            "give other files to train on and to measure on"
        )
    return DataSplits(kept, dev, measured), len(train) - len(kept)


def without_sources(data: Sequence[Some], those: Iterable[Example | Entry]) -> list[Some]:
    """What has none of the sources of `those`."""
    taken = {source_key(each.source) for each in those}
    return [each for each in data if source_key(each.source) not in taken]


def divide(
    data: Sequence[Example | Entry], *, dev_rows: int, measured_sources: int, seed: int
) -> tuple[list[Example], list[Entry]]:
    """Examples for choosing, and entries for measuring, of different sources.

    Returns:
        One example each of `dev_rows` sources; all entries of `measured_sources` other sources.

    Raises:
        BadExamples: fewer sources than that.
    """
    _check(dev_rows, measured_sources)
    groups = _shuffled(data, seed)
    if len(groups) < dev_rows + measured_sources:
        raise BadExamples(
            f"the dev examples have {len(groups)} different sources; {dev_rows} to choose by and "
            f"{measured_sources} to measure on are {dev_rows + measured_sources}. Give a file of "
            "their own to measure on, or ask for fewer"
        )
    measured = [entry for group in groups[:measured_sources] for entry in group]
    chosen = groups[measured_sources : measured_sources + dev_rows]
    return _one_of_each(chosen, seed), measured


def draw_dev(data: Sequence[Example | Entry], rows: int, seed: int) -> list[Example]:
    """One example each of `rows` sources, or of all if there are fewer."""
    _check(rows, 1)
    return _one_of_each(_shuffled(data, seed)[:rows], seed)


def draw_measured(data: Sequence[Example | Entry], sources: int | None, seed: int) -> list[Entry]:
    """All entries of `sources` sources; None, or fewer there: of all."""
    _check(1, 1 if sources is None else sources)
    return [entry for group in _shuffled(data, seed)[:sources] for entry in group]


def few_targets(entries: Sequence[Entry], most: int) -> list[Example]:
    """At most so many examples of each entry: losses need no more, and cost by the row."""
    return [Example(entry.source, target) for entry in entries for target in entry.references[:most]]


def distinct_sources(entries: Sequence[Entry]) -> list[Source]:
    """Every source once, in the order in which they first come."""
    return list({source_key(entry.source): entry.source for entry in entries}.values())


def _check(dev_rows: int, sources: int) -> None:
    if dev_rows < 1 or sources < 1:
        raise UsageError(f"dev rows are {dev_rows}, measured sources {sources}; expected 1 or more of each")


def _shuffled(data: Sequence[Example | Entry], seed: int) -> list[list[Entry]]:
    """Entries by source, so that no source is on both sides; whose they are does not matter from here on."""
    by_source: dict[object, list[Entry]] = {}
    for entry in entries_of(data):
        by_source.setdefault(source_key(entry.source), []).append(replace(entry, owner=None))
    groups = list(by_source.values())
    random.Random(f"{seed}/sources").shuffle(groups)
    return groups


def _one_of_each(groups: Sequence[Sequence[Entry]], seed: int) -> list[Example]:
    drawn = random.Random(f"{seed}/targets")
    return [drawn.choice(examples_of(group, fit_only=False)) for group in groups]


def by_owner(example: Example | Entry) -> str | None:
    """The field of an example or entry that says whose it is; of what, where --group-field names another."""
    return example.owner


def split_by_group(
    train: Sequence[Example],
    dev: Sequence[Example | Entry],
    names: Sequence[str],
    *,
    dev_rows: int,
    measured_sources: int,
    seed: int,
    test: Sequence[Example | Entry] | None = None,
    group_of: GroupOf = by_owner,
) -> tuple[DataSplits, tuple[str, ...], int]:
    """Training examples without the groups held out; to measure, seen and unseen groups, apart.

    Unseen is every group that no training example is left of. A source can stand in several groups: one that
    is measured as unseen is nothing else.

    Args:
        names: groups to hold out; none: one in three of those in dev, drawn by the seed, or no group where
            `test` has some that training lacks.
        dev_rows: examples, of seen groups, by which steps and rates are chosen.
        measured_sources: of seen groups, and as many of unseen ones.
        test: examples to measure on; None: others of dev.

    Returns:
        The splits, measured on `seen` and `unseen`; the names of the unseen groups; how many training
        examples of seen groups were left out because their source chooses or is measured.

    Raises:
        BadExamples: an example without a group, or too few examples of seen groups.
        UsageError: a group that is not there, or none left to train on or to measure as seen or unseen.
    """
    measured_on = dev if test is None else test
    for what, examples in (("training", train), ("dev", dev), ("test", test or ())):
        for number, example in enumerate(examples):
            if group_of(example) is None:
                raise BadExamples(
                    f"{what} example {number} has no group; name the field that holds it with --group-field"
                )
    groups = sorted({str(group_of(example)) for example in measured_on})
    trained = {str(group_of(example)) for example in train}
    if unknown := [name for name in names if name not in groups]:
        where = "dev" if test is None else "test"
        raise UsageError(f"no {where} example is of {unknown[0]!r}; groups there are {', '.join(groups)}")
    held = tuple(names) or _drawn(groups, trained, seed, drawn=test is None)
    unseen_groups = tuple(name for name in groups if name in held or name not in trained)
    if not unseen_groups:
        raise UsageError(
            f"{len(groups)} groups, all of them in training; name those to hold out, or give {SHARE} or more"
        )
    kept = [example for example in train if group_of(example) not in held]
    if not kept:
        raise UsageError(f"no training example is left without {', '.join(held)}; hold fewer groups out")
    if len(unseen_groups) == len(groups):
        raise UsageError(
            f"no group that is trained on is there to be measured as seen: training has "
            f"{', '.join(sorted(trained - {*held}))}, measured are {', '.join(groups)}"
        )
    unseen = [example for example in measured_on if group_of(example) in unseen_groups]
    outside = draw_measured(unseen, measured_sources, seed)
    seen = without_sources([e for e in measured_on if group_of(e) not in unseen_groups], outside)
    if test is None:
        chosen, measured = divide(seen, dev_rows=dev_rows, measured_sources=measured_sources, seed=seed)
    else:
        measured = draw_measured(seen, measured_sources, seed)
        seen_dev = [example for example in dev if str(group_of(example)) in trained - {*held}]
        chosen = draw_dev(without_sources(seen_dev, [*measured, *outside]), dev_rows, seed)
        if not chosen:
            raise BadExamples("no dev example of a group that is trained on is left to choose by")
    splits, left_out = apart(kept, chosen, {"seen": measured, "unseen": outside})
    return splits, unseen_groups, left_out


def _drawn(groups: Sequence[str], trained: set[str], seed: int, *, drawn: bool) -> tuple[str, ...]:
    """The groups that are held out where none are named."""
    if not drawn and any(name not in trained for name in groups):
        return ()
    known = [name for name in groups if name in trained]
    return tuple(sorted(random.Random(seed).sample(known, len(known) // SHARE)))
