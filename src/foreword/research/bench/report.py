"""The report of a benchmark: tables for people, JSON for machines, and pictures: ratios as bars, curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foreword import files
from foreword.reporting.markdown import table
from foreword.research.bench.timing import Spread
from foreword.training.checkpoint import prepare_folder

FILES = ("report.md", "report.json", "ratios.png", "curves.png")
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


@dataclass(frozen=True)
class Report:
    """One benchmark's outcome.

    Attributes:
        command: that makes it again.
        environment: see `environment.describe_machine`.
        notes: how to read it, a sentence each.
        columns, rows: the table; cells are text, numbers, spreads or None.
        ratios: of the picture: what they are called, and each; empty for no picture.
        limits: what the machine can do, by name and with its unit.
        panels: of the picture, where the report is of curves.
    """

    title: str
    command: str
    environment: Mapping[str, str]
    notes: Sequence[str]
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    ratios: Mapping[str, Spread] = field(default_factory=dict)
    ratio_name: str = ""
    limits: Mapping[str, str] = field(default_factory=dict)
    panels: Sequence[Panel] = ()


def cell(value: Any) -> str:
    """As people read it."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def markdown(report: Report) -> str:
    """The whole report as a page."""
    lines = [f"# {report.title}", "", f"`{report.command}`", ""]
    lines += [f"- {name}: {value}" for name, value in {**report.environment, **report.limits}.items()]
    lines += ["", table(report.columns, [tuple(map(cell, row)) for row in report.rows])]
    lines += [*(f"- {note}" for note in report.notes), ""]
    return "\n".join(lines)


def as_json(report: Report) -> dict[str, Any]:
    """The whole report as plain data."""
    rows = [dict(zip(report.columns, map(_plain, row), strict=True)) for row in report.rows]
    return {
        "title": report.title,
        "command": report.command,
        "environment": dict(report.environment),
        "limits": dict(report.limits),
        "rows": rows,
        "notes": list(report.notes),
    }


def check_folder(folder: Path) -> None:
    """Make the folder of a report, before the work.

    Raises:
        CannotWrite: no right, or no such folder.
        OutputExists: it holds a report already.
    """
    prepare_folder(folder)
    for name in FILES:
        files.check_output(folder / name, overwrite=False)


def write(report: Report, folder: Path) -> list[Path]:
    """Write report.md, report.json and what there is to draw into the folder; returns their paths.

    Raises:
        CannotWrite: no right, or no such folder.
        OutputExists: one is there.
    """
    page, data, bars_file, curves_file = (folder / name for name in FILES)
    files.write_text(page, markdown(report))
    files.write_text(data, json.dumps(as_json(report), indent=2) + "\n")
    written = [page, data]
    if report.ratios:
        bars(report.ratios, report.ratio_name, bars_file)
        written.append(bars_file)
    if report.panels:
        curves(report.panels, curves_file)
        written.append(curves_file)
    return written


def _plain(value: Any) -> Any:
    if isinstance(value, Spread):
        return {"median": value.median, "low": value.low, "high": value.high}
    return value


def bars(ratios: Mapping[str, Spread], name: str, path: Path) -> None:
    """A bar for each ratio, its quartiles, and a line at 1."""
    names = list(ratios)[::-1]
    medians = [ratios[each].median for each in names]
    errors = [
        [ratios[each].median - ratios[each].low for each in names],
        [ratios[each].high - ratios[each].median for each in names],
    ]
    figure = _figure(7, 1.2 + 0.4 * len(names))
    axes = figure.subplots()
    axes.barh(names, medians, xerr=errors, color=MEASURED, ecolor=RULE, capsize=3)
    axes.axvline(1, color=RULE, linewidth=0.8, linestyle=":")
    axes.set_xlabel(name)
    _save(figure, [axes], path)


def curves(panels: Sequence[Panel], path: Path) -> None:
    """A panel for each curve: the median with its quartiles, what the operations say, dashed, and memory."""
    across = min(PANELS_A_ROW, len(panels))
    down = -(-len(panels) // across)
    figure = _figure(4.2 * across, 3.2 * down)
    axes_of = list(figure.subplots(down, across, squeeze=False).flat)
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
    _save(figure, axes_of[: len(panels)], path)


def _figure(width: float, height: float) -> Any:
    # Slow to import; and a figure of its own, without pyplot, draws where there is no screen.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def _save(figure: Any, every: Sequence[Any], path: Path) -> None:
    for axes in every:
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
