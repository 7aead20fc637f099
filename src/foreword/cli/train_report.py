"""Report: what a run with many owners ended in, for people and for machines."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer

from foreword.cli import output
from foreword.cli.train_destinations import Destination
from foreword.cli.train_record import read_record
from foreword.errors import ForewordError, OwnersFailed

SHOWN = 20
"""Owners up to which people see a line of each; --json has all."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        base: name of the base model.
        owners: all, in the order of the data.
        before: those who were done already.
        errors: of those who got no prefix.
    """

    base: str
    owners: Sequence[str]
    before: Collection[str]
    errors: Mapping[str, ForewordError]


def tell(outcome: Outcome, goal: Destination, *, json: bool) -> None:
    """Print the outcome.

    Raises:
        typer.Exit: with status 1, if some owners got no prefix.
    """
    rows = [_row(owner, outcome, goal) for owner in outcome.owners if owner not in outcome.errors]
    failed = [
        {"owner": owner, "type": type(error).__name__, "message": str(error)}
        for owner, error in outcome.errors.items()
    ]
    if json:
        error = OwnersFailed(dict(outcome.errors), {})
        told = {"type": type(error).__name__, "message": str(error)}
        output.json_object(
            {"base": outcome.base, "owners": rows, "failed": failed, **({"error": told} if failed else {})}
        )
    else:
        _tell_people(outcome, rows, failed)
    if failed:
        raise typer.Exit(1)


def _row(owner: str, outcome: Outcome, goal: Destination) -> dict[str, Any]:
    folder = goal.checkpoints(owner)
    record = read_record(folder)
    assert record is not None  # written before the prefix was
    return {
        "owner": owner,
        "prefix": goal.find(owner, record.digest),
        "digest": record.digest,
        "before": owner in outcome.before,
        **record.origin,
        "run": folder,
    }


def _tell_people(outcome: Outcome, rows: list[dict[str, Any]], failed: list[dict[str, str]]) -> None:
    if 0 < len(rows) <= SHOWN:
        cells = [
            (
                output.one_line(row["owner"]),
                str(row["examples"]),
                str(row["steps"]),
                "" if row["dev_loss"] is None else f"{row['dev_loss']:.4f}",
                str(row["prefix"]),
            )
            for row in rows
        ]
        output.table(("owner", "examples", "steps", "dev loss", "prefix"), cells)
    if failed:
        output.table(
            ("owner without a prefix", "why"),
            [(output.one_line(one["owner"]), f"{one['type']}: {one['message']}") for one in failed],
        )
    before = len(outcome.before)
    parts = [f"{len(rows) - before} trained"]
    parts += [f"{before} done before"] if before else []
    parts += [f"{len(failed)} failed"] if failed else []
    typer.echo(f"{len(outcome.owners)} owners: {', '.join(parts)}")
    if rows and str(rows[0]["prefix"]).endswith(".prefix"):
        command = ["foreword", "generate", "--prefix", str(rows[0]["prefix"]), "YOUR TEXT"]
        typer.echo(f"next: {shlex.join(command)}")
