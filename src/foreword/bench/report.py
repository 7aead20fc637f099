"""The report of a benchmark: tables for people, JSON for machines, a picture of the ratios."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foreword import files
from foreword.bench.rounds import Spread
from foreword.errors import CannotWrite


@dataclass(frozen=True)
class Report:
    """One benchmark's outcome.

    Attributes:
        title: what was measured.
        command: that makes it again.
        environment: see `environment.describe`.
        notes: how to read it, a sentence each.
        columns, rows: the table; cells are text, numbers, spreads or None.
        ratios: of the picture: what they are called, and each; empty for no picture.
        limits: what the machine can do, by name and with its unit.
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
    lines += ["", "| " + " | ".join(report.columns) + " |", "|---" * len(report.columns) + "|"]
    lines += ["| " + " | ".join(map(cell, row)) + " |" for row in report.rows]
    lines += ["", *(f"- {note}" for note in report.notes), ""]
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


FILES = ("report.md", "report.json", "ratios.png")


def check_folder(folder: Path) -> None:
    """Make the folder of a report, before the work.

    Raises:
        CannotWrite: no right, or no such folder.
        OutputExists: it holds a report already.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"the folder {folder} can't be made: {error.strerror}; choose another") from error
    for name in FILES:
        files.check_output(folder / name, overwrite=False)


def write(report: Report, folder: Path) -> list[Path]:
    """Write report.md, report.json and, where there are ratios, ratios.png into the folder; returns them.

    Raises:
        CannotWrite: no right, or no such folder.
        OutputExists: one is there.
    """
    page, data, picture = (folder / name for name in FILES)
    files.write_text(page, markdown(report))
    files.write_text(data, json.dumps(as_json(report), indent=2) + "\n")
    if not report.ratios:
        return [page, data]
    _draw(report, picture)
    return [page, data, picture]


def _plain(value: Any) -> Any:
    if isinstance(value, Spread):
        return {"median": value.median, "low": value.low, "high": value.high}
    return value


def _draw(report: Report, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(report.ratios)[::-1]
    medians = [report.ratios[name].median for name in names]
    errors = [
        [report.ratios[name].median - report.ratios[name].low for name in names],
        [report.ratios[name].high - report.ratios[name].median for name in names],
    ]
    figure, axes = pyplot.subplots(figsize=(7, 1.2 + 0.4 * len(names)))
    axes.barh(names, medians, xerr=errors, color="#4878a8", ecolor="#333333", capsize=3)
    axes.axvline(1, color="#333333", linewidth=0.8, linestyle=":")
    axes.set_xlabel(report.ratio_name)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
