"""Plots: a matrix of differences as colours, and curves with their spread by number of training examples."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword import files

FEW = 8
"""Up to so many columns, the cells also show their numbers."""

LONGEST_NAME = 24
MOST_COLUMNS = 4
MARKERS = "osD^vPX*<>ph"


def draw(
    values: Sequence[Sequence[float]], row_names: Sequence[str], column_names: Sequence[str], path: Path
) -> None:
    """Write the picture of a matrix (PNG): above 0 red, below 0 blue; cells of the diagonal are outlined.

    Rows beyond the columns stand apart, below a line, and do not widen the range of the colours.

    Raises:
        CannotWrite: no right or no space.
    """
    # Slow to import; and a figure of its own, without pyplot, draws where there is no screen.
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    count = len(column_names)
    side = max(4.2, 0.27 * count)
    figure = Figure(figsize=(side + 3.2, side + 2.2 + 0.27 * (len(row_names) - count)), layout="constrained")
    axes = figure.add_subplot()
    limit = _limit([value for row in values[:count] for value in row])
    image = axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="equal")
    for place in range(count):
        axes.add_patch(
            Rectangle((place - 0.5, place - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1)
        )
    if len(row_names) > count:
        axes.axhline(count - 0.5, color="black", linewidth=1.5)
    size = 10 if count <= FEW else 8
    rows, columns = [_shown(name) for name in row_names], [_shown(name) for name in column_names]
    axes.set_xticks(range(count), columns, rotation=90 if count > FEW else 30, fontsize=size)
    if count <= FEW:
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")
            label.set_rotation_mode("anchor")
    axes.set_yticks(range(len(rows)), rows, fontsize=size)
    axes.set_xlabel("whose dev examples")
    axes.set_ylabel("whose prefix")
    axes.set_title("Loss minus the loss under the owner's own prefix", fontsize=12)
    if count <= FEW:
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                dark = abs(value) > 0.6 * limit
                shown = f"{value:+.2f}" if value else "0"
                axes.text(x, y, shown, ha="center", va="center", color="white" if dark else "black")
    above = any(value > limit for row in values for value in row)
    below = any(value < -limit for row in values for value in row)
    ends = {(True, True): "both", (True, False): "max", (False, True): "min"}.get((above, below), "neither")
    bar = figure.colorbar(image, ax=axes, shrink=0.8, extend=ends)
    bar.set_label("difference per target token (nats)")
    caption = "Outlined: the owner's own prefix, 0 by definition. Red: worse than own; blue: better."
    figure.supxlabel(caption, fontsize=9)
    _save(figure, path)


def _shown(name: str) -> str:
    """A name as matplotlib draws it: a dollar sign would begin a formula, a long name take all room."""
    short = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
    return short.replace("$", r"\$")


def _limit(values: Sequence[float]) -> float:
    """Where the colours end: one value in fifty may lie beyond, so that it does not pale the rest."""
    ordered = sorted(abs(value) for value in values)
    return ordered[max(0, round(0.98 * len(ordered)) - 1)] or max(ordered[-1], 1e-3)


@dataclass(frozen=True)
class Curve:
    """One method: mean and spread where it has any."""

    name: str
    sizes: Sequence[int]
    means: Sequence[float]
    spreads: Sequence[float]


def draw_panels(panels: Mapping[str, Sequence[Curve]], path: Path, *, title: str, caption: str) -> None:
    """Write the picture (PNG): panels side by side; with one size only, a point and a bar for each method.

    Args:
        panels: the curves of all methods, by the name of a figure.

    Raises:
        CannotWrite: no right or no space.
    """
    # Slow to import; and a figure of its own, without pyplot, draws where there is no screen.
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(curve.name for curves in panels.values() for curve in curves))
    colours = {
        name: colormaps["tab20" if len(names) > 10 else "tab10"](place) for place, name in enumerate(names)
    }
    sizes = sorted({size for curves in panels.values() for curve in curves for size in curve.sizes})
    columns = min(len(panels), MOST_COLUMNS)
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.6 * columns, 4.4 * lines), layout="constrained")
    for place, (label, curves) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(lines, columns, place)
        for curve in curves:
            number = names.index(curve.name)
            colour, marker = colours[curve.name], MARKERS[number % len(MARKERS)]
            if len(sizes) == 1:
                heights = [-number] * len(curve.means)
                axes.errorbar(curve.means, heights, xerr=curve.spreads, fmt=marker, color=colour, capsize=3)
                continue
            low = [mean - spread for mean, spread in zip(curve.means, curve.spreads, strict=True)]
            high = [mean + spread for mean, spread in zip(curve.means, curve.spreads, strict=True)]
            axes.plot(curve.sizes, curve.means, color=colour, marker=marker, markersize=5, label=curve.name)
            axes.fill_between(curve.sizes, low, high, color=colour, alpha=0.15, linewidth=0)
        if len(sizes) == 1:
            axes.set_yticks(
                [-number for number in range(len(names))],
                names if place % columns == 1 % columns else [""] * len(names),
            )
            axes.set_xlabel(label)
        else:
            axes.set_xscale("log")
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.minorticks_off()
            axes.set_xlabel("training examples")
            axes.set_ylabel(label)
        axes.grid(alpha=0.25)
    if len(sizes) > 1:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(f"{title}\n{caption}", fontsize=11)
    _save(figure, path, bbox_inches="tight")


def _save(figure: Any, path: Path, **options: Any) -> None:
    content = io.BytesIO()
    figure.savefig(content, dpi=140, format="png", **options)
    files.write_bytes(path, content.getvalue(), overwrite=True)
