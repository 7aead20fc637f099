"""Material: what is trained on, what chooses steps and rates, and what is measured, all apart."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from foreword.errors import BadExamples, UsageError
from foreword.examples import Example, digest, references


@dataclass(frozen=True)
class Material:
    """The data of an experiment.

    Attributes:
        train: from which subsets are drawn.
        dev: by which the best step and each method's learning rate are chosen; one target for a source.
        measured: by the name of a group, examples that no choice has seen; every target of their sources.
    """

    train: Sequence[Example]
    dev: Sequence[Example]
    measured: Mapping[str, Sequence[Example]]

    def digests(self) -> dict[str, str]:
        """What tells this data from other data."""
        return {
            "train digest": digest(self.train),
            "dev digest": digest(self.dev),
            **{f"{name} digest": digest(examples) for name, examples in self.measured.items()},
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


def divide(
    examples: Sequence[Example], *, dev_rows: int, measured_sources: int, seed: int
) -> tuple[list[Example], list[Example]]:
    """Examples for choosing, and examples for measuring, of different sources.

    Returns:
        One example each of `dev_rows` sources; all examples of `measured_sources` other sources.

    Raises:
        BadExamples: fewer sources than that.
    """
    _check(dev_rows, measured_sources)
    groups = _shuffled(examples, seed)
    if len(groups) < dev_rows + measured_sources:
        raise BadExamples(
            f"the dev examples have {len(groups)} different sources; {dev_rows} to choose by and "
            f"{measured_sources} to measure on are {dev_rows + measured_sources}. Give a file of "
            "their own to measure on, or ask for fewer"
        )
    measured = [example for group in groups[:measured_sources] for example in group]
    chosen = groups[measured_sources : measured_sources + dev_rows]
    return _one_of_each(chosen, seed), measured


def draw_dev(examples: Sequence[Example], rows: int, seed: int) -> list[Example]:
    """One example each of `rows` sources, or of all if there are fewer."""
    _check(rows, 1)
    return _one_of_each(_shuffled(examples, seed)[:rows], seed)


def draw_measured(examples: Sequence[Example], sources: int | None, seed: int) -> list[Example]:
    """All examples of `sources` sources; None, or fewer there: of all."""
    _check(1, 1 if sources is None else sources)
    return [example for group in _shuffled(examples, seed)[:sources] for example in group]


def few_targets(examples: Sequence[Example], most: int) -> list[Example]:
    """At most so many examples of each source: losses need no more, and cost by the row."""
    return [Example(source, target) for source, targets in references(examples) for target in targets[:most]]


def _check(dev_rows: int, sources: int) -> None:
    if dev_rows < 1 or sources < 1:
        raise UsageError(f"dev rows are {dev_rows}, measured sources {sources}; expected 1 or more of each")


def _shuffled(examples: Sequence[Example], seed: int) -> list[list[Example]]:
    groups = [[Example(source, target) for target in targets] for source, targets in references(examples)]
    random.Random(f"{seed}/sources").shuffle(groups)
    return groups


def _one_of_each(groups: Sequence[Sequence[Example]], seed: int) -> list[Example]:
    drawn = random.Random(f"{seed}/targets")
    return [drawn.choice(group) for group in groups]
