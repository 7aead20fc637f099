"""How much one pass of a model may hold on a GPU, from the memory that is free there; and running out of it.

Sizes of batches and of parts decide speed and memory, and nothing else. On a CPU they are constants where
they are used, so that a run gives the same bits every day; on a GPU, whose matrix products want many more
rows, they follow from the free memory by the formulas here. These are not measured on a GPU.
"""

from __future__ import annotations

import re
from typing import Any

import torch

LOGIT_BYTES = 12
"""Of one logit while its loss is computed: the head's product, its logarithm in float32, and the gradient."""
LEAST_LOGITS, MOST_LOGITS = 1 << 20, 1 << 27
"""Fewer rows would not fill a matrix product; more (1.6 GB) gain nothing."""

LAYER_VALUES = 17
"""Numbers that a layer keeps of a token for going back, as a multiple of the hidden size: 34 bytes in 16 bits
(Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", equation 1, without
the attention scores, which fused kernels do not keep). Going forward alone, about two layers' are held."""
LEAST_TOKENS, MOST_TOKENS = 2048, 65536


OUT_OF_MEMORY = re.compile(r"not enough memory|can.t allocate memory|out of memory", re.IGNORECASE)
"""In the words of torch's CPU allocator, of which no type tells them, and of other devices' runtimes."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the host or on a device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None


def free_memory(device: torch.device) -> int | None:
    """Bytes that tensors can still take on a GPU, among them those that torch holds and nothing uses.

    None on other devices.
    """
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def logits_at_once(device: torch.device) -> int | None:
    """Logits of one part of a loss: an eighth of the free memory. None: not a GPU."""
    free = free_memory(device)
    if free is None:
        return None
    return min(max(free // 8 // LOGIT_BYTES, LEAST_LOGITS), MOST_LOGITS)


def tokens_at_once(
    model: Any, device: torch.device, *, gradient: bool, checkpointed: bool = False
) -> int | None:
    """Tokens of one pass of `model`: what their states in the layers take is half of the free memory.

    Args:
        gradient: the states of all layers are kept for going back.
        checkpointed: of all layers only what enters them, and one layer's states.

    Returns:
        None where `device` is not a GPU.
    """
    free = free_memory(device)
    if free is None:
        return None
    config = model.config.get_text_config(decoder=True)
    layers = int(config.num_hidden_layers)
    held = 2 * LAYER_VALUES
    if gradient:
        held = layers + LAYER_VALUES if checkpointed else layers * LAYER_VALUES
    of_token = held * int(config.hidden_size) * int(model.dtype.itemsize)
    return min(max(free // 2 // of_token, LEAST_TOKENS), MOST_TOKENS)
