"""Duels: the first method against each other one on the same training subsets, in words and as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from foreword.reporting.markdown import table
from foreword.research.baselines.registry import Method
from foreword.research.experiments import statistics
from foreword.research.experiments.comparison import CHANCE, Contrast, sign_test
from foreword.research.experiments.measure import LOSS
from foreword.research.experiments.plan import Plan
from foreword.research.experiments.report import counted
from foreword.research.experiments.rescoring import digits
from foreword.research.experiments.results import Ledger


def summary(ledger: Ledger, plan: Plan, groups: Sequence[str]) -> str:
    """The first method against the others, in words.

    A line, with a verdict, for each method that is tried at every size; one without for all those that are
    tried at one size.
    """
    lines = []
    for group in groups:
        for metric in dict.fromkeys((statistics.metrics(ledger)[0], LOSS)):
            what = metric if len(groups) == 1 else f"{metric}, {group}"
            lines += [_rival(ledger, plan, rival, group, metric, what) for rival in plan.methods[1:]]
            lines.append(_others(ledger, plan, group, metric, what))
    told = [line for line in lines if line]
    return ("\n".join(told) or "- No two methods have been measured on the same examples yet.") + "\n"


def duels(ledger: Ledger, plan: Plan, groups: Sequence[str]) -> str:
    """The first method against every other, by every figure."""
    first, rows = plan.methods[0], []
    for rival in statistics.all_methods(plan)[1:]:
        for group in groups:
            for metric in statistics.metrics(ledger):
                found = statistics.duel(ledger, plan, first, rival, group, metric)
                if found is not None:
                    places = digits(metric)
                    rows.append(
                        [
                            rival.title,
                            metric if len(groups) == 1 else f"{metric}, {group}",
                            _difference(found, places),
                            f"{found.better} of {found.pairs}",
                            f"{found.chance:.2g}",
                        ]
                    )
    head = ["against", "figure", f"difference ({first.title} better: +)", "better in", "p (sign test)"]
    return (
        f"{first.title[0].upper()}{first.title[1:]} against each other method on the same training subsets "
        "with the same seeds. Seeds of one subset are averaged and count once; subsets of all sizes count "
        "alike, and ± is their standard deviation. A positive difference means that "
        f"{first.title} is better, also for losses. A subset on which only one of the two diverged goes to "
        "the other. p: two-sided sign test. It covers the draw of the training subset only: all trials share "
        "one choice of learning rates and one set of measured examples.\n\n"
        f"{table(head, rows, words=2)}"
    )


def is_too_small(plan: Plan) -> bool:
    """Whether no difference can be significant, whatever the trials give."""
    return sign_test(len(plan.sizes) * plan.subsets, 0) > CHANCE


def too_few(plan: Plan) -> str:
    """Why no difference can be significant, in words."""
    pairs = len(plan.sizes) * plan.subsets
    return (
        f"With {counted(pairs, 'subset')} in all no difference can be significant: even if all of them "
        f"agree, p is {sign_test(pairs, 0):.2g}. Six or more can settle something."
    )


def _rival(ledger: Ledger, plan: Plan, rival: Method, group: str, metric: str, what: str) -> str:
    """The first against one that is tried at every size; or nothing, if they have no subset in common."""
    first = plan.methods[0]
    found = statistics.duel(ledger, plan, first, rival, group, metric)
    if found is None:
        return ""
    by_size = {
        size: statistics.duel(ledger, plan, first, rival, group, metric, size=size) for size in plan.sizes
    }
    return _sentence(first, rival, found, by_size, what, digits(metric))


def _sentence(
    first: Method,
    rival: Method,
    found: Contrast,
    by_size: Mapping[int, Contrast | None],
    what: str,
    places: int,
) -> str:
    """The outcome of one comparison, with the mean difference at each size: over sizes it can turn."""
    words = {
        "held": f"{first.title} is better",
        "opposite": f"{first.title} is worse",
        "open": "no significant difference",
    }[found.verdict]
    means = [
        f"n = {size}: {_mean(each, places)}"
        for size, each in by_size.items()
        if each is not None and not math.isnan(each.mean)
    ]
    sizes = f" By size: {', '.join(means)}." if len(means) > 1 else ""
    return (
        f"- **{first.title} vs {rival.title}, {what}: {words}** (mean difference "
        f"{_difference(found, places)}; better in {found.better} of {found.pairs} subsets; p = "
        f"{found.chance:.2g}).{sizes}"
    )


def _others(ledger: Ledger, plan: Plan, group: str, metric: str, what: str) -> str:
    """The first against those that are tried at one size only, the largest difference first; or nothing."""
    first, size = plan.methods[0], plan.tuning_size
    made: list[tuple[Method, Contrast]] = []
    without: list[tuple[Method, Contrast]] = []
    for rival in statistics.all_methods(plan)[len(plan.methods) :]:
        found = statistics.duel(ledger, plan, first, rival, group, metric, size=size)
        if found is not None:
            (without if math.isnan(found.mean) else made).append((rival, found))
    made.sort(key=lambda pair: pair[1].mean, reverse=True)
    told = [
        f"{rival.title}: {_mean(found, digits(metric))} ({found.better} of {found.pairs})"
        for rival, found in made + without
    ]
    if not told:
        return ""
    return (
        f"- **{first.title} vs the other methods at n = {size}, {what}** (mean difference; subsets where "
        f"{first.title} is ahead; {counted(plan.subsets, 'subset')} of one size, no test): {'; '.join(told)}."
    )


def _difference(found: Contrast, places: int) -> str:
    spread = f" ± {found.spread:.{places}f}" if found.pairs > 1 and not math.isnan(found.mean) else ""
    return _mean(found, places) + spread


def _mean(found: Contrast, places: int) -> str:
    return "-" if math.isnan(found.mean) else f"{found.mean:+.{places}f}"
