"""The report of the personalization experiment: words, table and picture, all made from the figures."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from foreword.reporting.markdown import table
from foreword.research.environment import conditions
from foreword.research.experiments.personalization import SHARED, OwnersData
from foreword.research.experiments.results import Results
from foreword.research.experiments.statistics import (
    SIGNIFICANCE,
    Column,
    PairedTest,
    Rival,
    contrast_own,
    sign_test,
)

RIVALS: dict[Rival, str] = {
    "none": "no prefix",
    "shared": "the shared prefix",
    "others": "the other owners' prefixes",
}


def contrasts(columns: Sequence[Column]) -> dict[Rival, PairedTest]:
    """Own prefixes against each rival."""
    return {rival: contrast_own(columns, rival) for rival in RIVALS}


def figures_of(test: PairedTest) -> dict[str, object]:
    """The figures of a comparison as plain data; `chance` is the p-value."""
    figures = dataclasses.asdict(test)
    return {**figures, "chance": figures.pop("p_value"), "verdict": test.verdict}


def make_report(
    results: Results, data: OwnersData, columns: Sequence[Column], base: str, picture: str
) -> str:
    """The page, in Markdown.

    Args:
        base: name of the base model.
        picture: name of the picture's file, beside the page.
    """
    session = results.sessions[-1]
    described = f"{base}, fingerprint `{results.settings['base fingerprint']}`"
    return "\n".join(
        [
            "# Personalization: own prefixes against the alternatives\n",
            f"{len(columns)} owners, one seed ({results.settings['seed']}). Losses are means per target "
            "token over each owner's dev examples, in nats; lower is better. `others` is the mean over all "
            "other owners' prefixes. Owners count alike in every mean, however many examples they have; ± is "
            "the standard deviation over owners.\n",
            "## What it says\n",
            summary(columns),
            "## By owner\n",
            _table(results, data, columns),
            f"![loss of every prefix on every owner's dev examples]({picture})\n",
            "Row: whose prefix. Column: whose dev examples. The colour is the loss minus that of the "
            "column's own prefix, which is on the diagonal: red is worse than own, blue better.\n",
            conditions(session["command"], described, results.sessions, results.settings),
            _notes(results, data),
        ]
    )


def make_matrix(columns: Sequence[Column]) -> tuple[list[list[float]], list[str], list[str]]:
    """Of the picture: every prefix on every owner's dev examples, against the owner's own, and whose rows and
    columns are."""
    owners = [column.owner for column in columns]
    values = [[column.under[owner] - column.own for column in columns] for owner in owners]
    values.append([column.shared - column.own for column in columns])
    values.append([column.none - column.own for column in columns])
    return values, [*owners, "shared prefix", "no prefix"], owners


def summary(columns: Sequence[Column]) -> str:
    """What the figures say of each comparison, in words."""
    lines = [_sentence(rival, each) for rival, each in contrasts(columns).items()]
    if sign_test(len(columns), 0) > SIGNIFICANCE:
        lines.append(f"- {len(columns)} owners are too few to settle anything, even if all of them agree.")
    first = sum(column.rank == 1 for column in columns)
    lines.append(
        f"- **Among all {len(columns)} owners' prefixes** the own one has the lowest loss for {first} of "
        f"{len(columns)} owners; if it did not matter whose it is, about 1 would be expected."
    )
    return "\n".join(lines) + "\n"


def _sentence(rival: Rival, each: PairedTest) -> str:
    ties = "" if not each.ties else f" ({each.ties} equal)"
    words = {
        "held": "held: the own prefix is better",
        "opposite": "did not hold: the own prefix is worse",
        "open": "not settled by these owners",
    }[each.verdict]
    return (
        f"- **Own prefix against {RIVALS[rival]}: {words}.** Its loss is {abs(each.mean):.3f} "
        f"{'lower' if each.mean > 0 else 'higher'} on average (± {each.spread:.3f} over owners), and lower "
        f"for {each.better} of {each.pairs} owners{ties}; fair coins would fall this unevenly with "
        f"probability {each.p_value:.2g}, and above {SIGNIFICANCE} counts as not settled."
    )


def _table(results: Results, data: OwnersData, columns: Sequence[Column]) -> str:
    rows = [
        [
            column.owner,
            str(len(data.train[column.owner])),
            f"{column.examples} ({column.tokens})",
            *(f"{loss:.3f}" for loss in (column.none, column.shared, column.own, column.others)),
            str(column.rank),
        ]
        for column in columns
    ]
    figures = [[column.none, column.shared, column.own, column.others] for column in columns]
    means = [
        f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"
        for values in zip(*figures, strict=True)
    ]
    rows.append(["**mean over owners**", "", "", *means, ""])
    better = [f"{each.better} of {each.pairs}" for each in contrasts(columns).values()]
    rows.append(["**own is better than**", "", "", better[0], better[1], "", better[2], ""])
    head = ["owner", "train", "dev (target tokens)", "none", "shared", "own", "others", "place of own"]
    return table(head, rows)


def _notes(results: Results, data: OwnersData) -> str:
    steps = results.records[SHARED]["steps"]
    batch = results.settings["batch_size"]
    own = sum(line["steps"] for name, line in results.records.items() if name.startswith("prefix of "))
    lines = [
        "- No dev example is seen in training: every prefix is that of its last step.",
        f"- The shared prefix was trained on the examples of all these owners together, {steps} steps of "
        f"{batch}; the owners' prefixes {own} steps of {batch} in all, each on its owner's examples alone.",
        f"- Left out for being longer than {results.settings['max_length']} tokens: {data.too_long[0]} "
        f"training and {data.too_long[1]} dev examples of these owners. Nothing was cut.",
    ]
    if data.unmeasured:
        lines.append(f"- Left out for having no dev examples: {len(data.unmeasured)} owners.")
    lines.append(
        "- One seed: another one gives other figures for single owners. The place of the own prefix is 1 "
        "where no other owner's does better."
    )
    return "## To know\n\n" + "\n".join(lines) + "\n"
