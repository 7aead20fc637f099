"""The report of trials: summary, tables and picture, all made from the results.

The summary compares the first method with each other one on the same training subsets.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foreword.reporting.markdown import table
from foreword.research.baselines.registry import MOST_TRIED, RATE, Method, shown
from foreword.research.environment import conditions, counted
from foreword.research.experiments import plots
from foreword.research.experiments import statistics as figures
from foreword.research.experiments.measure import LOSS, LOSS_TARGETS, digits, lower_is_better
from foreword.research.experiments.plan import Plan
from foreword.research.experiments.plots import Curve
from foreword.research.experiments.results import Results, choice_key
from foreword.research.experiments.statistics import SIGNIFICANCE, Cell, PairedTest, sign_test


def make_report(
    title: str,
    command: str,
    results: Results,
    plan: Plan,
    groups: Sequence[str],
    base: str,
    base_numbers: int,
    picture: str,
) -> str:
    """The page, in Markdown.

    Args:
        command: that makes these tables; another one may have made the trials.
        groups: names of what was measured.
        base: name of the base model, with `base_numbers` parameters.
        picture: name of the picture's file, beside the page.
    """
    described = f"{base}, {base_numbers:,} parameters, fingerprint `{results.settings['base fingerprint']}`"
    parts = [
        f"# {title}\n",
        _opening(results, plan),
        "## What it says\n",
        summary(results, plan, groups),
    ]
    for group in groups:
        for metric in figures.metrics(results):
            heading = _heading(metric, group, groups).replace(LOSS, "Loss", 1)
            parts += [f"## {heading}\n", _figures(results, plan, group, metric)]
    parts += [
        f"![the figures of the tables as a picture]({picture})\n",
        "## Trial by trial\n",
        comparisons(results, plan, groups),
        "## Size and time\n",
        _costs(results, plan, base_numbers),
        "## How rates and prompts were chosen\n",
        _grids(results, plan),
        conditions(command, described, results.sessions, _named(results.settings)),
        _notes(plan),
    ]
    return "\n".join(parts)


def _heading(metric: str, group: str, groups: Sequence[str]) -> str:
    return metric if len(groups) == 1 else f"{metric}, {group}"


def _opening(results: Results, plan: Plan) -> str:
    trials = list(plan.trials())
    done = sum(trial.key in results.records for trial in trials)
    state = "" if done == len(trials) else f" **Not finished: {done} of {len(trials)} trials are made.**"
    subsets, seeds = counted(plan.subsets, "subset"), counted(plan.seeds, "seed")
    return (
        f"Mean ± standard deviation over {subsets} of the training data at each n, with {seeds} each; a cell "
        "with fewer trials says how many. n: number of training examples. Loss: mean per target token, in "
        "nats. Lower is better for loss and TER, higher for all other figures. Differences are significant "
        "at p < "
        f"{SIGNIFICANCE} in a two-sided sign test over subsets.{state}\n"
    )


def _figures(results: Results, plan: Plan, group: str, metric: str) -> str:
    methods, sizes = figures.all_methods(plan), figures.sizes(plan)
    cells = {
        (method.name, size): figures.cell(results, plan, method, size, group, metric)
        for method in methods
        for size in sizes
    }
    best = min if lower_is_better(metric) else max
    rows = []
    for method in methods:
        row = [method.title]
        for size in sizes:
            # A mean over what is left after failures, or of a run that is not finished, can't be the best.
            means = [cells[m.name, size].mean for m in methods if cells[m.name, size].whole]
            own = cells[method.name, size]
            bold = own.whole and len(means) > 1 and own.mean == best(means)
            row.append(_cell(own, metric, bold))
        rows.append(row)
    return table(["method", *(f"n = {size}" for size in sizes)], rows)


def _cell(cell: Cell, metric: str, best: bool) -> str:
    counts = ((cell.diverged, "diverged"), (cell.endless, "not finite"))
    lost = [f"{count} {why}" for count, why in counts if count]
    if not cell.values:
        return ", ".join(lost) or "-"
    places = digits(metric)
    mean = f"{cell.mean:.{places}f}"
    text = f"**{mean}**" if best else mean
    if len(cell.values) > 1:
        text += f" ± {cell.spread:.{places}f}"
    notes = ([] if cell.whole else [f"{len(cell.values)} of {cell.planned} trials"]) + lost
    return text + (f" ({', '.join(notes)})" if notes else "")


def _costs(results: Results, plan: Plan, base_numbers: int) -> str:
    rows = []
    for method in figures.all_methods(plan):
        for size in figures.sizes(plan):
            trained, kept, steps, seconds = (
                figures.recorded(results, plan, method, size, name)
                for name in ("trained", "kept", "step", "training_seconds")
            )
            if kept:
                share = f"{100 * kept[0] / base_numbers:.3f}%"
                means = [f"{statistics.fmean(values):.0f}" for values in (steps, seconds)]
                rows.append([method.title, f"{trained[0]:,}", f"{kept[0]:,}", share, str(size), *means])
    head = ["method", "parameters trained", "stored", "of the base's", "n", "best step", "seconds"]
    return (
        table(head, rows) + "\nBest step and seconds are means over the trials of the size. Seconds are of "
        "training with its dev evaluations, on as many threads as each start had, beside whatever else ran: "
        "they tell what the run took, and do not compare methods.\n"
    )


def _grids(results: Results, plan: Plan) -> str:
    if not plan.tuned:
        rows = [[method.title, shown(method.default)] for method in figures.all_methods(plan)]
        return f"Not tuned: each method's usual one.\n\n{table(['method', 'taken'], rows)}"
    rows, edges = [], []
    for method in figures.all_methods(plan):
        prefix = choice_key(method, {}).removesuffix(shown({}))
        tried = {
            name.removeprefix(prefix): record
            for name, record in results.records.items()
            if name.startswith(prefix)
        }
        losses = [record["dev_loss"] for record in tried.values() if record["dev_loss"] is not None]
        if _at_edge(list(tried.values())):
            edges.append(method.title)
        for name, record in tried.items():
            loss = record["dev_loss"]
            text = "diverged" if loss is None else f"{loss:.4f}"
            shown_loss = f"**{text}**" if losses and loss == min(losses) else text
            rows.append([method.title, name, shown_loss, str(record["step"] or "-")])
    ended = (
        f" **The best was still at the edge, and a better one may lie beyond it: {', '.join(edges)}.**"
        if edges
        else ""
    )
    return (
        f"On {plan.tuning_size} training examples, drawn for this (trials may share some of them), with one "
        "seed; the lowest dev loss (bold) is taken for all sizes. Where it was at the edge of the grid, the "
        f"grid was extended, to at most {MOST_TRIED} points in all.{ended}\n\n"
        + table(["method", "choice", "dev loss", "at step"], rows)
    )


def _at_edge(tried: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the grid of a rate ended with its best one at the edge."""
    rates = {record["choice"].get(RATE): record["dev_loss"] for record in tried}
    known = {rate: loss for rate, loss in rates.items() if rate is not None and loss is not None}
    if len(rates) < MOST_TRIED or not known:
        return False
    return min(known, key=lambda rate: known[rate]) in (min(rates), max(rates))


def _named(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings under names for people; those of what is measured are its groups'."""
    return {
        f"references measured ({name.removeprefix('measured: ')})"
        if name.startswith("measured: ")
        else name.replace("_", " "): value
        for name, value in settings.items()
    }


def _notes(plan: Plan) -> str:
    lines = [
        "- Every method sees the same subsets in the same order, in the same batches, with the same warm-up, "
        "decay and clipping, keeps the step with the lowest dev loss, and generates with the same decoding. "
        "The start, step 0, is measured but can't be kept: a method that only makes it worse shows it.",
        "- Dev examples choose learning rates and steps. No source that is measured is among them or among "
        "the training examples.",
        f"- The loss is over at most {LOSS_TARGETS} references of a source; texts are scored against all.",
    ]
    if any(not method.sees_training for method in figures.all_methods(plan)):
        lines.append(
            "- A method that sees no training examples is measured once, and compared with every subset."
        )
    if is_too_small(plan):
        lines.append(f"- {too_few(plan)}")
    return "## Notes\n\n" + "\n".join(lines) + "\n"


def summary(results: Results, plan: Plan, groups: Sequence[str]) -> str:
    """The first method against the others, in words.

    A line, with a verdict, for each method that is tried at every size; one without for all those that are
    tried at one size.
    """
    lines = []
    for group in groups:
        for metric in dict.fromkeys((figures.metrics(results)[0], LOSS)):
            what = _heading(metric, group, groups)
            lines += [_rival(results, plan, rival, group, metric, what) for rival in plan.methods[1:]]
            lines.append(_others(results, plan, group, metric, what))
    return (
        "\n".join(filter(None, lines)) or "- No two methods have been measured on the same examples yet."
    ) + "\n"


def comparisons(results: Results, plan: Plan, groups: Sequence[str]) -> str:
    """The first method against every other, by every figure."""
    first, rows = plan.methods[0], []
    for rival in figures.all_methods(plan)[1:]:
        for group in groups:
            for metric in figures.metrics(results):
                test = figures.paired_comparison(results, plan, first, rival, group, metric)
                if test is not None:
                    difference = _difference(test, digits(metric))
                    better = f"{test.better} of {test.pairs}"
                    heading = _heading(metric, group, groups)
                    rows.append([rival.title, heading, difference, better, f"{test.p_value:.2g}"])
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
    return sign_test(len(plan.sizes) * plan.subsets, 0) > SIGNIFICANCE


def too_few(plan: Plan) -> str:
    """Why no difference can be significant, in words."""
    pairs = len(plan.sizes) * plan.subsets
    return (
        f"With {counted(pairs, 'subset')} in all no difference can be significant: even if all of them "
        f"agree, p is {sign_test(pairs, 0):.2g}. Six or more can settle something."
    )


def _rival(results: Results, plan: Plan, rival: Method, group: str, metric: str, what: str) -> str:
    """The first against one that is tried at every size, with the mean difference at each size: over sizes it
    can turn; or nothing, if they have no subset in common."""
    first, places = plan.methods[0], digits(metric)
    test = figures.paired_comparison(results, plan, first, rival, group, metric)
    if test is None:
        return ""
    words = {
        "held": f"{first.title} is better",
        "opposite": f"{first.title} is worse",
        "open": "no significant difference",
    }[test.verdict]
    means = []
    for size in plan.sizes:
        of_size = figures.paired_comparison(results, plan, first, rival, group, metric, size=size)
        if of_size is not None and not math.isnan(of_size.mean):
            means.append(f"n = {size}: {_mean(of_size, places)}")
    sizes = f" By size: {', '.join(means)}." if len(means) > 1 else ""
    return (
        f"- **{first.title} vs {rival.title}, {what}: {words}** (mean difference "
        f"{_difference(test, places)}; better in {test.better} of {test.pairs} subsets; p = "
        f"{test.p_value:.2g}).{sizes}"
    )


def _others(results: Results, plan: Plan, group: str, metric: str, what: str) -> str:
    """The first against those that are tried at one size only, the largest difference first; or nothing."""
    first, size = plan.methods[0], plan.tuning_size
    tests: list[tuple[Method, PairedTest]] = []
    for rival in figures.all_methods(plan)[len(plan.methods) :]:
        test = figures.paired_comparison(results, plan, first, rival, group, metric, size=size)
        if test is not None:
            tests.append((rival, test))
    if not tests:
        return ""
    tests.sort(key=lambda pair: -math.inf if math.isnan(pair[1].mean) else pair[1].mean, reverse=True)
    each = [
        f"{rival.title}: {_mean(test, digits(metric))} ({test.better} of {test.pairs})"
        for rival, test in tests
    ]
    return (
        f"- **{first.title} vs the other methods at n = {size}, {what}** (mean difference; subsets where "
        f"{first.title} is ahead; {counted(plan.subsets, 'subset')} of one size, no test): {'; '.join(each)}."
    )


def _difference(test: PairedTest, places: int) -> str:
    spread = f" ± {test.spread:.{places}f}" if test.pairs > 1 and not math.isnan(test.mean) else ""
    return _mean(test, places) + spread


def _mean(test: PairedTest, places: int) -> str:
    return "-" if math.isnan(test.mean) else f"{test.mean:+.{places}f}"


def draw(results: Results, plan: Plan, groups: Sequence[str], path: Path, *, title: str) -> None:
    """Write the picture (PNG).

    Raises:
        CannotWrite: no right or no space.
    """
    panels = {
        _heading(metric, group, groups): _curves(results, plan, group, metric)
        for group in groups
        for metric in figures.metrics(results)
    }
    caption = "Mean of all subsets and seeds; band or bar: ± standard deviation."
    plots.draw_panels(panels, path, title=title, caption=caption)


def _curves(results: Results, plan: Plan, group: str, metric: str) -> list[Curve]:
    curves = []
    # Methods of one size alone are in the tables: as points on one line nobody could tell them apart.
    for method in plan.methods if len(figures.sizes(plan)) > 1 else figures.all_methods(plan):
        cells = {
            size: cell
            for size in figures.sizes(plan)
            if (cell := figures.cell(results, plan, method, size, group, metric)).values
        }
        if cells:
            means, spreads = [c.mean for c in cells.values()], [c.spread for c in cells.values()]
            curves.append(Curve(method.title, list(cells), means, spreads))
    return curves
