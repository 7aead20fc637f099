"""The report of trials: words and tables, all made from the ledger's figures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from foreword.baselines.method import MOST_TRIED, RATE, Method, shown
from foreword.experiments import report, tally
from foreword.experiments.choosing import choice_piece
from foreword.experiments.comparison import CHANCE, Contrast
from foreword.experiments.ledger import Ledger
from foreword.experiments.measuring import LOSS, LOSS_TARGETS
from foreword.experiments.plan import Plan
from foreword.experiments.rescoring import digits, lower_is_better
from foreword.experiments.tally import Cell
from foreword.markdown import table


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
    parts = [f"# {title}\n", _opening(ledger, plan), "## What it says\n", summary(ledger, plan, groups)]
    for group in groups:
        for metric in tally.metrics(ledger):
            heading = metric if len(groups) == 1 else f"{metric}, {group}"
            parts += [f"## {heading.replace(LOSS, 'Loss', 1)}\n", _figures(ledger, plan, group, metric)]
    parts += [
        f"![the figures of the tables as a picture]({picture})\n",
        "## Trial by trial\n",
        _duels(ledger, plan, groups),
        "## Size and time\n",
        _costs(ledger, plan, base_numbers),
        "## How rates and prompts were chosen\n",
        _grids(ledger, plan),
        report.conditions(command, described, ledger.sessions, ledger.settings),
        _notes(plan),
    ]
    return "\n".join(parts)


def summary(ledger: Ledger, plan: Plan, groups: Sequence[str]) -> str:
    """The first method against the others that are tried at every size, in words."""
    metrics = tally.metrics(ledger)
    lines = []
    for group in groups:
        for rival in plan.methods[1:]:
            for metric in dict.fromkeys((metrics[0], LOSS)):
                found = tally.duel(ledger, plan, plan.methods[0], rival, group, metric)
                if found is not None:
                    where = "" if len(groups) == 1 else f", {group}"
                    lines.append(_sentence(plan.methods[0], rival, found, f"{metric}{where}", digits(metric)))
    return ("\n".join(lines) or "- No two methods have been measured on the same examples yet.") + "\n"


def _duels(ledger: Ledger, plan: Plan, groups: Sequence[str]) -> str:
    """The first method against every other, by every figure."""
    first, rows = plan.methods[0], []
    for rival in tally.all_methods(plan)[1:]:
        for group in groups:
            for metric in tally.metrics(ledger):
                found = tally.duel(ledger, plan, first, rival, group, metric)
                if found is not None:
                    places = digits(metric)
                    rows.append(
                        [
                            rival.title,
                            metric if len(groups) == 1 else f"{metric}, {group}",
                            f"{found.mean:+.{places}f} ± {found.spread:.{places}f}",
                            f"{found.better} of {found.pairs}",
                            f"{found.chance:.2g}",
                        ]
                    )
    head = ["against", "figure", f"gain of {first.title}", "better in", "chance"]
    return (
        f"{first.title[0].upper()}{first.title[1:]} against each other method, on the same subsets with the "
        "same seeds, the mean over seeds counting as one; a positive gain is better, of the loss, too. ± is "
        "the standard deviation over the subsets of all sizes, so what the sizes differ by is in it. Chance: "
        "how often fair coins would fall this unevenly. It covers the draw of the training subset alone: one "
        "choice of rates and one set of measured examples are shared by all trials.\n\n"
        f"{table(head, rows, words=2)}"
    )


def _sentence(first: Method, rival: Method, found: Contrast, what: str, places: int) -> str:
    words = {
        "held": f"{first.title} is better",
        "opposite": f"{first.title} is worse",
        "open": "not settled by these subsets",
    }[found.verdict]
    higher = "better" if found.mean > 0 else "worse"
    spread = f" (± {found.spread:.{places}f} over subsets)" if found.pairs > 1 else ""
    return (
        f"- **{first.title} against {rival.title}, {what}: {words}.** It is "
        f"{abs(found.mean):.{places}f} {higher} on average{spread}, and better in {found.better} of "
        f"{found.pairs} subsets; fair coins would fall this unevenly with probability {found.chance:.2g}, "
        f"above {CHANCE} counts as not settled."
    )


def _opening(ledger: Ledger, plan: Plan) -> str:
    trials = list(plan.trials())
    done = sum(trial.piece in ledger.pieces for trial in trials)
    state = "" if done == len(trials) else f" **{done} of {len(trials)} trials are made: not finished.**"
    return (
        f"Mean ± standard deviation over {plan.subsets} subsets of the training data with {plan.seeds} "
        f"seed(s) each; a cell with fewer trials says how many. n: training examples. Loss: mean per target "
        f"token, in nats, lower is better, as of TER; of all other figures higher is better.{state}\n"
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
            means = [cells[m.name, size].mean for m in methods if cells[m.name, size].values]
            own = cells[method.name, size]
            row.append(_cell(own, plan, metric, bool(own.values) and own.mean == best(means)))
        rows.append(row)
    return table(["method", *(f"n = {size}" for size in sizes)], rows)


def _cell(found: Cell, plan: Plan, metric: str, best: bool) -> str:
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
    whole = len(found.values) == plan.subsets * plan.seeds
    notes = ([] if whole else [f"{len(found.values)} trials"]) + lost
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
    head = ["method", "numbers trained", "numbers kept", "of the base's", "n", "best step", "seconds"]
    return (
        table(head, rows) + "\nBest step and seconds are means over the trials of the size. Seconds are of "
        "training with its dev evaluations, beside whatever else ran.\n"
    )


def _grids(ledger: Ledger, plan: Plan) -> str:
    if not plan.tuned:
        rows = [[method.title, shown(method.usual)] for method in tally.all_methods(plan)]
        return f"Nothing was chosen: the usual ones were taken.\n\n{table(['method', 'taken'], rows)}"
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
        f" **The best was at the edge still, and a better one may lie beyond it: {', '.join(edges)}.**"
        if edges
        else ""
    )
    return (
        f"On {plan.tuning_size} training examples, a draw of their own (trials may have some of them, too), "
        "with one seed; the lowest dev loss (bold) decides, for all sizes. Where it was at the edge of the "
        f"grid, the grid was made wider, to at most {MOST_TRIED} in all.{ended}\n\n"
        + table(["method", "choice", "dev loss", "at step"], rows)
    )


def _at_edge(tried: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the grid of a rate ended with its best one at the edge."""
    rates = {piece["choice"].get(RATE): piece["dev_loss"] for piece in tried}
    known = {rate: loss for rate, loss in rates.items() if rate is not None and loss is not None}
    if len(rates) < MOST_TRIED or not known:
        return False
    return min(known, key=lambda rate: known[rate]) in (min(rates), max(rates))


def _notes(plan: Plan) -> str:
    lines = [
        "- Every method sees the same subsets in the same order, in batches of the same examples, with the "
        "same warm-up, decay and clipping, keeps the step with the lowest dev loss, and writes with the same "
        "decoding. The beginning, step 0, is measured and can't be kept: a method that only makes it worse "
        "is shown as that.",
        "- Dev examples choose rates and steps. What is measured has other sources than these and than what "
        "is trained on.",
        f"- The loss is measured on at most {LOSS_TARGETS} targets of a source, texts against all of them.",
    ]
    if len(plan.sizes) * plan.subsets < 6:
        lines.append("- Fewer than six subsets settle nothing, even if all of them agree.")
    return "## To know\n\n" + "\n".join(lines) + "\n"
