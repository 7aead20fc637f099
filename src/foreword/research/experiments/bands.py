"""Bands: figures by the number of training examples as curves, each with a band of its spread."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from foreword import files

MOST_COLUMNS = 4
MARKERS = "osD^vPX*<>ph"


@dataclass(frozen=True)
class Curve:
    """One method: mean and spread where it has any."""

    name: str
    sizes: Sequence[int]
    means: Sequence[float]
    spreads: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """One figure of all methods."""

    label: str
    curves: Sequence[Curve]


def draw(panels: Sequence[Panel], path: Path, *, title: str, caption: str) -> None:
    """Write the picture (PNG): panels side by side; with one size only, a point and a bar for each method.

    Raises:
        CannotWrite: no right or no space.
    """
    # Slow to import; and a figure of its own, without pyplot, draws where there is no screen.
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(curve.name for panel in panels for curve in panel.curves))
    colours = {
        name: colormaps["tab20" if len(names) > 10 else "tab10"](place) for place, name in enumerate(names)
    }
    sizes = sorted({size for panel in panels for curve in panel.curves for size in curve.sizes})
    columns = min(len(panels), MOST_COLUMNS)
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.6 * columns, 4.4 * lines), layout="constrained")
    for place, panel in enumerate(panels, 1):
        axes = figure.add_subplot(lines, columns, place)
        for curve in panel.curves:
            number = names.index(curve.name)
            colour, marker = colours[curve.name], MARKERS[number % len(MARKERS)]
            if len(sizes) == 1:
                axes.errorbar(
                    curve.means,
                    [-number] * len(curve.means),
                    xerr=curve.spreads,
                    fmt=marker,
                    color=colour,
                    capsize=3,
                )
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
            axes.set_xlabel(panel.label)
        else:
            axes.set_xscale("log")
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.minorticks_off()
            axes.set_xlabel("training examples")
            axes.set_ylabel(panel.label)
        axes.grid(alpha=0.25)
    if len(sizes) > 1:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(f"{title}\n{caption}", fontsize=11)
    written = io.BytesIO()
    figure.savefig(written, dpi=140, format="png", bbox_inches="tight")
    files.write_bytes(path, written.getvalue(), overwrite=True)
