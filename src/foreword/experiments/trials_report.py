"""The report of trials: words and tables, all made from the ledger's figures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from foreword.baselines.method import Method, shown
from foreword.experiments import report, tally
from foreword.experiments.comparison import CHANCE
from foreword.experiments.ledger import Ledger
from foreword.experiments.measuring import LOSS, LOSS_TARGETS
from foreword.experiments.rescoring import digits, lower_is_better
from foreword.experiments.tally import Cell, Duel
from foreword.experiments.trials import Plan, choice_piece
from foreword.markdown import table


def make_report(
    title: str, ledger: Ledger, plan: Plan, groups: Sequence[str], base: str, base_numbers: int, picture: str
) -> str:
    """The page, in Markdown.

    Args:
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
        report.conditions(ledger.sessions[-1]["command"], described, ledger.sessions, ledger.settings),
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
                    lines.append(_sentence(plan.methods[0], found, f"{metric}{where}", digits(metric)))
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
                            f"{found.better} of {found.trials}",
                            f"{found.chance:.2g}",
                        ]
                    )
    head = ["against", "figure", f"gain of {first.title}", "better in", "chance"]
    return (
        f"{first.title[0].upper()}{first.title[1:]} against each other method, on the same subsets with the "
        "same seeds; a positive gain is better, of the loss, too. Chance: how often fair coins would fall "
        f"this unevenly.\n\n{table(head, rows, words=2)}"
    )


def _sentence(first: Method, found: Duel, what: str, places: int) -> str:
    words = {
        "held": f"{first.title} is better",
        "opposite": f"{first.title} is worse",
        "open": "not settled by these trials",
    }[found.verdict]
    higher = "better" if found.mean > 0 else "worse"
    spread = f" (± {found.spread:.{places}f} over trials)" if found.trials > 1 else ""
    return (
        f"- **{first.title} against {found.rival.title}, {what}: {words}.** It is "
        f"{abs(found.mean):.{places}f} {higher} on average{spread}, and better in {found.better} of "
        f"{found.trials} trials; fair coins would fall this unevenly with probability {found.chance:.2g}, "
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
    diverged = f"{found.diverged} diverged" if found.diverged else ""
    if not found.values:
        return diverged or "-"
    places = digits(metric)
    mean = f"{found.mean:.{places}f}"
    text = f"**{mean}**" if best else mean
    if len(found.values) > 1:
        text += f" ± {found.spread:.{places}f}"
    whole = len(found.values) == plan.subsets * plan.seeds
    notes = ([] if whole else [f"{len(found.values)} trials"]) + ([diverged] if diverged else [])
    return text + (f" ({', '.join(notes)})" if notes else "")


def _costs(ledger: Ledger, plan: Plan, base_numbers: int) -> str:
    rows = []
    for method in tally.all_methods(plan):
        kept = tally.of_piece(ledger, plan, method, "kept")
        if not kept:
            continue
        trained = tally.of_piece(ledger, plan, method, "trained")
        steps = tally.of_piece(ledger, plan, method, "step")
        seconds = tally.of_piece(ledger, plan, method, "training_seconds")
        rows.append(
            [
                method.title,
                f"{trained[0]:,}",
                f"{kept[0]:,}",
                f"{100 * kept[0] / base_numbers:.3f}%",
                f"{statistics.fmean(steps):.0f}",
                f"{statistics.fmean(seconds):.0f}",
            ]
        )
    head = ["method", "numbers trained", "numbers kept", "of the base's", "best step, mean", "seconds, mean"]
    return (
        table(head, rows) + "\nSeconds are of training with its dev evaluations, beside whatever else ran.\n"
    )


def _grids(ledger: Ledger, plan: Plan) -> str:
    if not plan.tuned:
        rows = [[method.title, shown(method.usual)] for method in tally.all_methods(plan)]
        return f"Nothing was chosen: the usual ones were taken.\n\n{table(['method', 'taken'], rows)}"
    rows = []
    for method in tally.all_methods(plan):
        prefix = choice_piece(method, {}).removesuffix(shown({}))
        tried = [
            (name.removeprefix(prefix), p) for name, p in ledger.pieces.items() if name.startswith(prefix)
        ]
        losses = [piece["dev_loss"] for _, piece in tried if piece["dev_loss"] is not None]
        for name, piece in tried:
            loss = piece["dev_loss"]
            chosen = bool(losses) and loss == min(losses)
            told = "diverged" if loss is None else f"{loss:.4f}"
            rows.append([method.title, name, f"**{told}**" if chosen else told, str(piece["step"] or "-")])
    return (
        f"On {plan.tuning_size} training examples, drawn apart from those of the trials, with one seed; the "
        "lowest dev loss (bold) decides, for all sizes. Where it was at the edge of the grid, the "
        "grid was made wider.\n\n" + table(["method", "choice", "dev loss", "at step"], rows)
    )


def _notes(plan: Plan) -> str:
    lines = [
        "- Every method sees the same subsets in the same order, in batches of the same examples, with the "
        "same warm-up, decay and clipping, keeps the step with the lowest dev loss, and writes with the same "
        "decoding.",
        "- Dev examples choose rates and steps. What is measured has other sources, and chose nothing.",
        f"- The loss is measured on at most {LOSS_TARGETS} targets of a source, texts against all of them.",
    ]
    if len(plan.sizes) * plan.subsets * plan.seeds < 6:
        lines.append("- Fewer than six trials of a method settle nothing, even if all of them agree.")
    return "## To know\n\n" + "\n".join(lines) + "\n"
