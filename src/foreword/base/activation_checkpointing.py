"""Gradient checkpointing: keep only what enters each layer, compute the rest again going back.

transformers' own switch works in training mode only, and a frozen base model stays in eval mode (no
dropout). So the layers' forward passes are wrapped here. The second forward pass may run on another
thread, after `attention_context` has ended; it gets the state that was in force in the first.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from foreword.base.attention import attention_context, current
from foreword.errors import UnsupportedArchitecture


@contextlib.contextmanager
def gradient_checkpointing(model: Any, enabled: bool = True) -> Iterator[None]:
    """Checkpoint every layer of `model` inside the block.

    Raises:
        UnsupportedArchitecture: the model has no layers that say they can be checkpointed.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)] if enabled else []
    if enabled and not layers:
        raise UnsupportedArchitecture(f"{type(model).__name__} has no layers that can be checkpointed")
    for layer in layers:
        layer.forward = functools.partial(
            checkpoint,
            layer.forward,
            use_reentrant=False,
            preserve_rng_state=False,  # eval mode: nothing random happens
            context_fn=_carry_state,
        )
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # uncovers the class's own


def _carry_state() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return contextlib.nullcontext(), attention_context(current())
