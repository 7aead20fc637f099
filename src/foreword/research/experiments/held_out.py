"""Held out: groups of examples, such as categories or users, that training and choices never see."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from foreword.errors import BadExamples, UsageError
from foreword.examples import Entry, Example
from foreword.research.experiments.splits import (
    Material,
    apart,
    divide,
    draw_dev,
    draw_measured,
    without_sources,
)

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
    test: Sequence[Example | Entry] | None = None,
    group_of: GroupOf = by_owner,
) -> tuple[Material, tuple[str, ...], int]:
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
        The material, measured on `seen` and `unseen`; the names of the unseen groups; how many training
        examples of seen groups were left out because their source chooses or is measured.

    Raises:
        BadExamples: an example without a group, or too few examples of seen groups.
        UsageError: a group that is not there, or none left to train on or to measure as seen or unseen.
    """
    measured_on = dev if test is None else test
    for what, examples in (("training", train), ("dev", dev), ("test", test or ())):
        _check_groups(what, examples, group_of)
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
    material, left_out = apart(kept, chosen, {"seen": measured, "unseen": outside})
    return material, unseen_groups, left_out


def _check_groups(what: str, examples: Sequence[Example | Entry], group_of: GroupOf) -> None:
    for number, example in enumerate(examples):
        if group_of(example) is None:
            raise BadExamples(
                f"{what} example {number} has no group; name the field that holds it with --group-field"
            )


def _drawn(groups: Sequence[str], trained: set[str], seed: int, *, drawn: bool) -> tuple[str, ...]:
    """The groups that are held out where none are named."""
    if not drawn and any(name not in trained for name in groups):
        return ()
    known = [name for name in groups if name in trained]
    return tuple(sorted(random.Random(seed).sample(known, len(known) // SHARE)))
