"""The picture of trials: a panel for each figure of each group, a curve for each method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from foreword.research.experiments import bands, statistics
from foreword.research.experiments.bands import Curve, Panel
from foreword.research.experiments.plan import Plan
from foreword.research.experiments.results import Ledger


def draw(ledger: Ledger, plan: Plan, groups: Sequence[str], path: Path, *, title: str) -> None:
    """Write the picture (PNG).

    Raises:
        CannotWrite: no right or no space.
    """
    panels = [
        Panel(metric if len(groups) == 1 else f"{metric}, {group}", _curves(ledger, plan, group, metric))
        for group in groups
        for metric in statistics.metrics(ledger)
    ]
    caption = "Mean of all subsets and seeds; band or bar: ± standard deviation."
    bands.draw(panels, path, title=title, caption=caption)


def _curves(ledger: Ledger, plan: Plan, group: str, metric: str) -> list[Curve]:
    curves = []
    # Methods of one size alone are in the tables: as points on one line nobody could tell them apart.
    for method in plan.methods if len(statistics.sizes(plan)) > 1 else statistics.all_methods(plan):
        cells = {
            size: found
            for size in statistics.sizes(plan)
            if (found := statistics.cell(ledger, plan, method, size, group, metric)).values
        }
        if cells:
            means, spreads = [c.mean for c in cells.values()], [c.spread for c in cells.values()]
            curves.append(Curve(method.title, list(cells), means, spreads))
    return curves
