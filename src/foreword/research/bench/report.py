"""The report of a benchmark: tables for people, JSON for machines, a picture of the ratios."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foreword import files
from foreword.errors import CannotWrite
from foreword.reporting.markdown import table
from foreword.research.bench import picture
from foreword.research.bench.picture import Panel
from foreword.research.bench.timing import Spread


@dataclass(frozen=True)
class Report:
    """One benchmark's outcome.

    Attributes:
        title: what was measured.
        command: that makes it again.
        environment: see `hardware.describe_machine`.
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


FILES = ("report.md", "report.json", "ratios.png", "curves.png")


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
    """Write report.md, report.json and what there is to draw into the folder; returns their paths.

    Raises:
        CannotWrite: no right, or no such folder.
        OutputExists: one is there.
    """
    page, data, bars, curves = (folder / name for name in FILES)
    files.write_text(page, markdown(report))
    files.write_text(data, json.dumps(as_json(report), indent=2) + "\n")
    written = [page, data]
    if report.ratios:
        picture.bars(report.ratios, report.ratio_name, bars)
        written.append(bars)
    if report.panels:
        picture.curves(report.panels, curves)
        written.append(curves)
    return written


def _plain(value: Any) -> Any:
    if isinstance(value, Spread):
        return {"median": value.median, "low": value.low, "high": value.high}
    return value
