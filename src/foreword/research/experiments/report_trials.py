"""Duels: the first method against each other one on the same training subsets, in words and as a table.

The picture of trials: a panel for each figure of each group, a curve for each method.

The report of trials: words and tables, all made from the ledger's figures.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foreword.reporting.markdown import table
from foreword.research.baselines.registry import MOST_TRIED, RATE, Method, shown
from foreword.research.experiments import plots, report
from foreword.research.experiments import statistics as tally
from foreword.research.experiments.measure import LOSS, LOSS_TARGETS, digits, lower_is_better
from foreword.research.experiments.plan import Plan
from foreword.research.experiments.plots import Curve, Panel
from foreword.research.experiments.report import counted
from foreword.research.experiments.results import Results, choice_piece
from foreword.research.experiments.statistics import CHANCE, Cell, PairedTest, sign_test


def summary(ledger: Results, plan: Plan, groups: Sequence[str]) -> str:
    """The first method against the others, in words.

    A line, with a verdict, for each method that is tried at every size; one without for all those that are
    tried at one size.
    """
    lines = []
    for group in groups:
        for metric in dict.fromkeys((tally.metrics(ledger)[0], LOSS)):
            what = metric if len(groups) == 1 else f"{metric}, {group}"
            lines += [_rival(ledger, plan, rival, group, metric, what) for rival in plan.methods[1:]]
            lines.append(_others(ledger, plan, group, metric, what))
    told = [line for line in lines if line]
    return ("\n".join(told) or "- No two methods have been measured on the same examples yet.") + "\n"


def duels(ledger: Results, plan: Plan, groups: Sequence[str]) -> str:
    """The first method against every other, by every figure."""
    first, rows = plan.methods[0], []
    for rival in tally.all_methods(plan)[1:]:
        for group in groups:
            for metric in tally.metrics(ledger):
                found = tally.paired_comparison(ledger, plan, first, rival, group, metric)
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


def _rival(ledger: Results, plan: Plan, rival: Method, group: str, metric: str, what: str) -> str:
    """The first against one that is tried at every size; or nothing, if they have no subset in common."""
    first = plan.methods[0]
    found = tally.paired_comparison(ledger, plan, first, rival, group, metric)
    if found is None:
        return ""
    by_size = {
        size: tally.paired_comparison(ledger, plan, first, rival, group, metric, size=size)
        for size in plan.sizes
    }
    return _sentence(first, rival, found, by_size, what, digits(metric))


def _sentence(
    first: Method,
    rival: Method,
    found: PairedTest,
    by_size: Mapping[int, PairedTest | None],
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


def _others(ledger: Results, plan: Plan, group: str, metric: str, what: str) -> str:
    """The first against those that are tried at one size only, the largest difference first; or nothing."""
    first, size = plan.methods[0], plan.tuning_size
    made: list[tuple[Method, PairedTest]] = []
    without: list[tuple[Method, PairedTest]] = []
    for rival in tally.all_methods(plan)[len(plan.methods) :]:
        found = tally.paired_comparison(ledger, plan, first, rival, group, metric, size=size)
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


def _difference(found: PairedTest, places: int) -> str:
    spread = f" ± {found.spread:.{places}f}" if found.pairs > 1 and not math.isnan(found.mean) else ""
    return _mean(found, places) + spread


def _mean(found: PairedTest, places: int) -> str:
    return "-" if math.isnan(found.mean) else f"{found.mean:+.{places}f}"


# -- The picture of trials: a panel for each figure of each group, a curve for each method ---------


def draw(ledger: Results, plan: Plan, groups: Sequence[str], path: Path, *, title: str) -> None:
    """Write the picture (PNG).

    Raises:
        CannotWrite: no right or no space.
    """
    panels = [
        Panel(metric if len(groups) == 1 else f"{metric}, {group}", _curves(ledger, plan, group, metric))
        for group in groups
        for metric in tally.metrics(ledger)
    ]
    caption = "Mean of all subsets and seeds; band or bar: ± standard deviation."
    plots.draw_panels(panels, path, title=title, caption=caption)


def _curves(ledger: Results, plan: Plan, group: str, metric: str) -> list[Curve]:
    curves = []
    # Methods of one size alone are in the tables: as points on one line nobody could tell them apart.
    for method in plan.methods if len(tally.sizes(plan)) > 1 else tally.all_methods(plan):
        cells = {
            size: found
            for size in tally.sizes(plan)
            if (found := tally.cell(ledger, plan, method, size, group, metric)).values
        }
        if cells:
            means, spreads = [c.mean for c in cells.values()], [c.spread for c in cells.values()]
            curves.append(Curve(method.title, list(cells), means, spreads))
    return curves


# -- The report of trials: words and tables, all made from the ledger's figures --------------------


def make_report(
    title: str,
    command: str,
    ledger: Results,
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
    described = f"{base}, {base_numbers:,} parameters, fingerprint `{ledger.settings['base fingerprint']}`"
    parts = [
        f"# {title}\n",
        _opening(ledger, plan),
        "## What it says\n",
        summary(ledger, plan, groups),
    ]
    for group in groups:
        for metric in tally.metrics(ledger):
            heading = metric if len(groups) == 1 else f"{metric}, {group}"
            parts += [f"## {heading.replace(LOSS, 'Loss', 1)}\n", _figures(ledger, plan, group, metric)]
    parts += [
        f"![the figures of the tables as a picture]({picture})\n",
        "## Trial by trial\n",
        duels(ledger, plan, groups),
        "## Size and time\n",
        _costs(ledger, plan, base_numbers),
        "## How rates and prompts were chosen\n",
        _grids(ledger, plan),
        report.conditions(command, described, ledger.sessions, _named(ledger.settings)),
        _notes(plan),
    ]
    return "\n".join(parts)


def _opening(ledger: Results, plan: Plan) -> str:
    trials = list(plan.trials())
    done = sum(trial.piece in ledger.pieces for trial in trials)
    state = "" if done == len(trials) else f" **Not finished: {done} of {len(trials)} trials are made.**"
    subsets, seeds = report.counted(plan.subsets, "subset"), report.counted(plan.seeds, "seed")
    return (
        f"Mean ± standard deviation over {subsets} of the training data at each n, with {seeds} each; a cell "
        "with fewer trials says how many. n: number of training examples. Loss: mean per target token, in "
        "nats. Lower is better for loss and TER, higher for all other figures. Differences are significant "
        "at p < "
        f"{CHANCE} in a two-sided sign test over subsets.{state}\n"
    )


def _figures(ledger: Results, plan: Plan, group: str, metric: str) -> str:
    methods, sizes = tally.all_methods(plan), tally.sizes(plan)
    cells = {
        (method.name, size): tally.cell(ledger, plan, method, size, group, metric)
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


def _cell(found: Cell, metric: str, best: bool) -> str:
    lost = [
        f"{count} {why}"
        for count, why in ((found.diverged, "diverged"), (found.endless, "not finite"))
        if count
    ]
    if not found.values:
        return ", ".join(lost) or "-"
    places = digits(metric)
    mean = f"{found.mean:.{places}f}"
    text = f"**{mean}**" if best else mean
    if len(found.values) > 1:
        text += f" ± {found.spread:.{places}f}"
    notes = ([] if found.whole else [f"{len(found.values)} of {found.planned} trials"]) + lost
    return text + (f" ({', '.join(notes)})" if notes else "")


def _costs(ledger: Results, plan: Plan, base_numbers: int) -> str:
    rows = []
    for method in tally.all_methods(plan):
        for size in tally.sizes(plan):
            kept = tally.of_piece(ledger, plan, method, size, "kept")
            if not kept:
                continue
            trained = tally.of_piece(ledger, plan, method, size, "trained")
            steps = tally.of_piece(ledger, plan, method, size, "step")
            seconds = tally.of_piece(ledger, plan, method, size, "training_seconds")
            rows.append(
                [
                    method.title,
                    f"{trained[0]:,}",
                    f"{kept[0]:,}",
                    f"{100 * kept[0] / base_numbers:.3f}%",
                    str(size),
                    f"{statistics.fmean(steps):.0f}",
                    f"{statistics.fmean(seconds):.0f}",
                ]
            )
    head = ["method", "parameters trained", "stored", "of the base's", "n", "best step", "seconds"]
    return (
        table(head, rows) + "\nBest step and seconds are means over the trials of the size. Seconds are of "
        "training with its dev evaluations, on as many threads as each start had, beside whatever else ran: "
        "they tell what the run took, and do not compare methods.\n"
    )


def _grids(ledger: Results, plan: Plan) -> str:
    if not plan.tuned:
        rows = [[method.title, shown(method.usual)] for method in tally.all_methods(plan)]
        return f"Not tuned: each method's usual one.\n\n{table(['method', 'taken'], rows)}"
    rows, edges = [], []
    for method in tally.all_methods(plan):
        prefix = choice_piece(method, {}).removesuffix(shown({}))
        tried = [
            (name.removeprefix(prefix), p) for name, p in ledger.pieces.items() if name.startswith(prefix)
        ]
        losses = [piece["dev_loss"] for _, piece in tried if piece["dev_loss"] is not None]
        if _at_edge([piece for _, piece in tried]):
            edges.append(method.title)
        for name, piece in tried:
            loss = piece["dev_loss"]
            chosen = bool(losses) and loss == min(losses)
            told = "diverged" if loss is None else f"{loss:.4f}"
            rows.append([method.title, name, f"**{told}**" if chosen else told, str(piece["step"] or "-")])
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
    rates = {piece["choice"].get(RATE): piece["dev_loss"] for piece in tried}
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
    if any(not method.sees_training for method in tally.all_methods(plan)):
        lines.append(
            "- A method that sees no training examples is measured once, and compared with every subset."
        )
    if is_too_small(plan):
        lines.append(f"- {too_few(plan)}")
    return "## Notes\n\n" + "\n".join(lines) + "\n"
