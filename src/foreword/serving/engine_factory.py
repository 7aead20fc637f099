"""Engines: which there are, by the name that the configuration gives them."""

from __future__ import annotations

from foreword.base.base_model import BaseModel
from foreword.errors import UsageError
from foreword.serving.config import Configuration
from foreword.serving.engine.protocol import Engine

ENGINES = ("local", "vllm")


def make_engine(configuration: Configuration, base: BaseModel) -> Engine:
    """The engine that the configuration names, ready to take rows.

    Raises:
        UsageError: no engine has this name, or it needs what is not installed.
        Whatever the engine raises for a base that it can't serve.
    """
    if configuration.engine == "local":
        from foreword.serving.engine.local import LocalEngine

        return LocalEngine(base)
    if configuration.engine == "vllm":
        try:
            from foreword.serving.vllm.launch import make_vllm_engine
        except ModuleNotFoundError as error:
            if error.name != "httpx":
                raise
            raise UsageError(
                "the vLLM engine needs httpx; install it with: pip install 'foreword[vllm]'"
            ) from error
        return make_vllm_engine(configuration, base)
    raise UsageError(f"engine is {configuration.engine!r}; expected {', '.join(ENGINES)}")
