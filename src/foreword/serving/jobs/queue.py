"""Job: one training that a server does for an owner, as the catalogue keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from foreword.store.tables import job_event, now

LIVE = ("queued", "running")
"""States of a job that has not ended."""


@dataclass(frozen=True)
class Job:
    """A row of the table; see `foreword.store.tables.job`."""

    id: str
    owner: str
    created: str
    state: str
    model: str
    name: str
    training_file: str
    validation_file: str | None
    settings: Mapping[str, Any]
    alike: str
    asked: Mapping[str, Any]
    attempts: int = 0
    worker: str | None = None
    beat: str | None = None
    started: str | None = None
    finished: str | None = None
    result: str | None = None
    trained_tokens: int | None = None
    error: Mapping[str, Any] | None = None


def add_event(
    connection: Connection, identifier: str, level: str, message: str, data: Mapping[str, Any] | None = None
) -> None:
    """Add an event to the transaction under way."""
    row = {"job": identifier, "at": now(), "level": level, "message": message, "data": data}
    connection.execute(job_event.insert().values(row))
