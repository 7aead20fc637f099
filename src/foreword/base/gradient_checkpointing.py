"""Gradient checkpointing of a frozen model: keep what enters each layer, compute the rest again going back.

transformers' own switch works in training mode only, and a frozen model stays in eval mode (no dropout). So
each layer gets a class in front of its own, whose call looks at a context variable: on in the threads that
asked for it, and nowhere else. That class stays when the block has ended, since it changes nothing then; so
threads that train on one model have nothing to put on and take off under each other.

The whole call of a layer is computed again, not its class's `forward`: accelerate puts a function of its own
in front of that one, on the instance, which moves inputs and weights to the layer's device every time.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from foreword.base.attention import attention_context, current_context
from foreword.errors import UnsupportedArchitecture

_enabled: ContextVar[bool] = ContextVar("foreword_gradient_checkpointing", default=False)


class CheckpointedLayer(nn.Module):
    """A layer that is checkpointed inside of `gradient_checkpointing`, and is what it was outside of it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not _enabled.get():
            return super().__call__(*args, **kwargs)
        return checkpoint(
            super().__call__,
            *args,
            use_reentrant=False,
            preserve_rng_state=False,  # eval mode: nothing random happens
            context_fn=_contexts,
            **kwargs,
        )


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Of the first pass and the second, which may be on another thread, when the first's block is over."""
    return contextlib.nullcontext(), attention_context(current_context())


@functools.cache
def _checkpointed(kind: type[nn.Module]) -> type[nn.Module]:
    """`kind` behind `CheckpointedLayer`, under its own name: some look layers up by their class's name."""
    return type(kind.__name__, (CheckpointedLayer, kind), {"__module__": kind.__module__})


@contextlib.contextmanager
def gradient_checkpointing(model: Any, enabled: bool = True) -> Iterator[None]:
    """Checkpoint the layers of `model` in the passes that this thread makes inside the block.

    Raises:
        UnsupportedArchitecture: the model has no layers that say they can be checkpointed.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)] if enabled else []
    if enabled and not layers:
        raise UnsupportedArchitecture(f"{type(model).__name__} has no layers that can be checkpointed")
    for layer in layers:
        if not isinstance(layer, CheckpointedLayer):
            layer.__class__ = _checkpointed(type(layer))  # type: ignore[arg-type]
    token = _enabled.set(enabled)
    try:
        yield
    finally:
        _enabled.reset(token)
