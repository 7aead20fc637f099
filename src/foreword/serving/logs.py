"""Logs: one JSON object a line on standard error.

No prompt, answer or key is ever among the fields, and no message of an error that could quote one.
"""

from __future__ import annotations

import datetime
import json
import logging
import sys
import time
import traceback
import warnings
from typing import Any

from foreword.errors import ForewordWarning

LOGGER = logging.getLogger("foreword.serving")
_MOST_TEXTS = 200


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


class Seldom(logging.Filter):
    """Lets a message pass once in a while, and says how often it came meanwhile.

    For messages that clients cause by connecting, at any rate: bytes that are no HTTP, no free descriptors.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        super().__init__()
        self._seconds = seconds
        self._left_out: dict[str, int] = {}
        self._until: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to let it pass."""
        text, now = record.getMessage(), time.monotonic()
        if now < self._until.get(text, 0.0):
            self._left_out[text] += 1
            return False
        if repeated := self._left_out.get(text, 0):
            record.fields = {"repeated": repeated}
        if len(self._until) >= _MOST_TEXTS:
            self._until.clear()
            self._left_out.clear()
        self._until[text], self._left_out[text] = now + self._seconds, 0
        return True


def install() -> None:
    """Let the records of this server, uvicorn and asyncio, and our warnings, leave as JSON lines on standard
    error."""
    plain, seldom = logging.StreamHandler(sys.stderr), logging.StreamHandler(sys.stderr)
    seldom.addFilter(Seldom())
    for name, handler in (("foreword.serving", plain), ("uvicorn", seldom), ("asyncio", seldom)):
        handler.setFormatter(JsonLines())
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
