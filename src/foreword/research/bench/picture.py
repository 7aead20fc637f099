"""Pictures of a report: ratios as bars, curves in panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.research.bench.timing import Spread

MEASURED, SAID, HELD, RULE = "#4878a8", "#c06030", "#609060", "#333333"
PANELS_A_ROW = 3


@dataclass(frozen=True)
class Panel:
    """One curve.

    Attributes:
        title, across, up: what it shows, and its axes with their units.
        points: values across.
        measured: up, with quartiles.
        said: up, what the operations alone say; empty for none.
        memory: peak megabytes, on an axis of their own; empty for none.
    """

    title: str
    across: str
    up: str
    points: Sequence[float]
    measured: Sequence[Spread]
    said: Sequence[float] = ()
    memory: Sequence[float] = ()


def bars(ratios: Mapping[str, Spread], name: str, path: Path) -> None:
    """A bar for each ratio, its quartiles, and a line at 1."""
    pyplot = _pyplot()
    names = list(ratios)[::-1]
    medians = [ratios[each].median for each in names]
    errors = [
        [ratios[each].median - ratios[each].low for each in names],
        [ratios[each].high - ratios[each].median for each in names],
    ]
    figure, axes = pyplot.subplots(figsize=(7, 1.2 + 0.4 * len(names)))
    axes.barh(names, medians, xerr=errors, color=MEASURED, ecolor=RULE, capsize=3)
    axes.axvline(1, color=RULE, linewidth=0.8, linestyle=":")
    axes.set_xlabel(name)
    _save(pyplot, figure, [axes], path)


def curves(panels: Sequence[Panel], path: Path) -> None:
    """A panel for each curve: the median with its quartiles, what the operations say, dashed, and memory."""
    pyplot = _pyplot()
    across = min(PANELS_A_ROW, len(panels))
    down = -(-len(panels) // across)
    figure, grid = pyplot.subplots(down, across, figsize=(4.2 * across, 3.2 * down), squeeze=False)
    axes_of = [axes for row in grid for axes in row]
    for axes, panel in zip(axes_of, panels, strict=False):
        middle = [each.median for each in panel.measured]
        low, high = ([getattr(each, end) for each in panel.measured] for end in ("low", "high"))
        axes.plot(panel.points, middle, color=MEASURED, marker="o", markersize=3, label="measured")
        axes.fill_between(panel.points, low, high, color=MEASURED, alpha=0.25, linewidth=0)
        if panel.said:
            axes.plot(panel.points, panel.said, color=SAID, linestyle="--", label="by operations alone")
        if panel.memory:
            beside = axes.twinx()
            beside.plot(panel.points, panel.memory, color=HELD, linestyle=":", marker=".")
            beside.set_ylim(bottom=0)
            beside.set_ylabel("peak MB", color=HELD)
            beside.spines["top"].set_visible(False)
            axes.plot([], [], color=HELD, linestyle=":", marker=".", label="peak memory")
        if panel.said or panel.memory:
            axes.legend(frameon=False, fontsize=8)
        axes.set_xscale("log", base=2)
        axes.set_xticks(panel.points, [f"{point:g}" for point in panel.points], fontsize=8, rotation=45)
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_title(panel.title, fontsize=9)
        axes.set_xlabel(panel.across)
        axes.set_ylabel(panel.up)
    for axes in axes_of[len(panels) :]:
        axes.remove()
    _save(pyplot, figure, axes_of[: len(panels)], path)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(pyplot: Any, figure: Any, every: Sequence[Any], path: Path) -> None:
    for axes in every:
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
