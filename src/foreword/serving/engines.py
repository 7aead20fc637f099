"""Engines: which there are, by the name that the configuration gives them."""

from __future__ import annotations

from foreword.base import BaseModel
from foreword.errors import UsageError
from foreword.serving.configuration import Configuration
from foreword.serving.engine import Engine

ENGINES = ("local",)


def make_engine(configuration: Configuration, base: BaseModel) -> Engine:
    """The engine that the configuration names.

    Raises:
        UsageError: no engine has this name.
    """
    if configuration.engine != "local":
        raise UsageError(f"engine is {configuration.engine!r}; expected {', '.join(ENGINES)}")
    from foreword.serving.local_engine import LocalEngine

    return LocalEngine(base)
