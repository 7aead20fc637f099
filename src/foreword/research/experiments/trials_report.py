"""The report of trials: words and tables, all made from the ledger's figures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from foreword.reporting.markdown import table
from foreword.research.baselines.registry import MOST_TRIED, RATE, shown
from foreword.research.experiments import report, report_trials
from foreword.research.experiments import statistics as tally
from foreword.research.experiments.comparison import CHANCE
from foreword.research.experiments.measure import LOSS, LOSS_TARGETS
from foreword.research.experiments.plan import Plan
from foreword.research.experiments.rescoring import digits, lower_is_better
from foreword.research.experiments.results import Ledger
from foreword.research.experiments.statistics import Cell
from foreword.research.experiments.tuning import choice_piece


def make_report(
    title: str,
    command: str,
    ledger: Ledger,
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
        report_trials.summary(ledger, plan, groups),
    ]
    for group in groups:
        for metric in tally.metrics(ledger):
            heading = metric if len(groups) == 1 else f"{metric}, {group}"
            parts += [f"## {heading.replace(LOSS, 'Loss', 1)}\n", _figures(ledger, plan, group, metric)]
    parts += [
        f"![the figures of the tables as a picture]({picture})\n",
        "## Trial by trial\n",
        report_trials.duels(ledger, plan, groups),
        "## Size and time\n",
        _costs(ledger, plan, base_numbers),
        "## How rates and prompts were chosen\n",
        _grids(ledger, plan),
        report.conditions(command, described, ledger.sessions, _named(ledger.settings)),
        _notes(plan),
    ]
    return "\n".join(parts)


def _opening(ledger: Ledger, plan: Plan) -> str:
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


def _figures(ledger: Ledger, plan: Plan, group: str, metric: str) -> str:
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


def _costs(ledger: Ledger, plan: Plan, base_numbers: int) -> str:
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


def _grids(ledger: Ledger, plan: Plan) -> str:
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
    if report_trials.is_too_small(plan):
        lines.append(f"- {report_trials.too_few(plan)}")
    return "## Notes\n\n" + "\n".join(lines) + "\n"
