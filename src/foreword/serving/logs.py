"""Logs: one JSON object a line on standard error.

No prompt, answer or key is ever among the fields, and no message of an error that could quote one.
"""

from __future__ import annotations

import datetime
import json
import logging
import sys
import traceback
import warnings
from typing import Any

from foreword.errors import ForewordWarning

LOGGER = logging.getLogger("foreword.serving")


class JsonLines(logging.Formatter):
    """A record as one JSON object: time, level, event, and the fields that came with it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        fields: dict[str, Any] = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            fields |= fault(record.exc_info[1])
        return json.dumps(fields)


def install() -> None:
    """Let this server's and uvicorn's records, and our warnings, leave as JSON lines on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("foreword.serving", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
    usual = warnings.showwarning

    def show(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, ForewordWarning):
            LOGGER.warning("warning", extra={"fields": {"warning": category.__name__, "text": str(message)}})
        else:
            usual(message, category, *place, **more)

    warnings.showwarning = show


def event(name: str, **fields: Any) -> None:
    """Log something that happened."""
    LOGGER.info(name, extra={"fields": fields})


def failure(name: str, error: BaseException, **fields: Any) -> None:
    """Log an error by its type and place; its message could quote what a user wrote."""
    LOGGER.error(name, extra={"fields": {**fields, **fault(error)}})


def fault(error: BaseException) -> dict[str, Any]:
    """What may be logged of an error."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    return {
        "error": type(error).__name__,
        "at": [f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} {frame.name}" for frame in frames],
    }
