"""Held out: groups of examples, such as categories or users, that training and choices never see."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from foreword.errors import BadExamples, UsageError
from foreword.examples import Entry, Example
from foreword.experiments.material import Material, apart, divide, draw_measured, without_sources

GroupOf = Callable[[Example | Entry], str | None]

SHARE = 3
"""Where no groups are named, one in so many is held out."""


def by_owner(example: Example | Entry) -> str | None:
    """The field of an example or entry that says whose it is; of what, where --group-field names another."""
    return example.owner


def hold_out(
    train: Sequence[Example],
    dev: Sequence[Example | Entry],
    names: Sequence[str],
    *,
    dev_rows: int,
    measured_sources: int,
    seed: int,
    group_of: GroupOf = by_owner,
) -> tuple[Material, tuple[str, ...], int]:
    """Training examples without the groups held out; dev examples of seen and of unseen groups, apart.

    A source can stand in several groups: one that is measured as unseen is nothing else.

    Args:
        names: groups to hold out; none: one in three of those in dev, drawn by the seed.
        dev_rows: examples, of seen groups, by which steps and rates are chosen.
        measured_sources: of seen groups, and as many of unseen ones.

    Returns:
        The material, measured on `seen` and `unseen`; the names of the groups held out; how many training
        examples of seen groups were left out because their source chooses or is measured.

    Raises:
        BadExamples: an example without a group, or too few examples of seen groups.
        UsageError: a group that dev does not have, or none left to train on.
    """
    for what, examples in (("training", train), ("dev", dev)):
        for number, example in enumerate(examples):
            if group_of(example) is None:
                raise BadExamples(
                    f"{what} example {number} has no group; name the field that holds it with --group-field"
                )
    groups = sorted({str(group_of(example)) for example in dev})
    if unknown := [name for name in names if name not in groups]:
        raise UsageError(f"no dev example is of {unknown[0]!r}; groups there are {', '.join(groups)}")
    held = tuple(names) or tuple(sorted(random.Random(seed).sample(groups, len(groups) // SHARE)))
    if not held:
        raise UsageError(f"dev has {len(groups)} groups; name those to hold out, or give {SHARE} or more")
    kept = [example for example in train if group_of(example) not in held]
    if not kept:
        raise UsageError(f"no training example is left without {', '.join(held)}; hold fewer groups out")
    unseen = [example for example in dev if group_of(example) in held]
    outside = draw_measured(unseen, measured_sources, seed)
    seen = without_sources([example for example in dev if group_of(example) not in held], outside)
    chosen, measured = divide(seen, dev_rows=dev_rows, measured_sources=measured_sources, seed=seed)
    material, left_out = apart(kept, chosen, {"seen": measured, "unseen": outside})
    return material, held, left_out
