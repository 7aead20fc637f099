"""Opening: the store and the base model that a configuration names, the same for server and trainer."""

from __future__ import annotations

from typing import Any

from foreword.base.base_model import BaseModel
from foreword.serving import logs
from foreword.serving.config import Configuration
from foreword.store import PrefixStore


def open_store(configuration: Configuration) -> PrefixStore:
    """The store, made when there is none. Raises as `PrefixStore`."""
    return PrefixStore(configuration.store, blobs=configuration.blobs, checkpoints=configuration.checkpoints)


def open_base(configuration: Configuration) -> BaseModel:
    """The base model. Raises as `BaseModel.load`."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    attention: Any = configuration.attention
    quantization: Any = configuration.quantization
    return BaseModel.load(
        configuration.base,
        device=configuration.device,
        dtype=configuration.dtype,
        attention=attention,
        quantization=quantization,
        notify=lambda line: logs.event("base model", note=line),
    )
