"""Loading: with which class, attention kernel, device and data type a base model is loaded."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from foreword.base.attention import IMPLEMENTATIONS, Kernel
from foreword.errors import UnsupportedArchitecture, UsageError


def choose_kernel(config: Any, model_class: Any) -> Kernel:
    """SDPA, unless the architecture does something to the attention weights that SDPA can't."""
    text = config.get_text_config(decoder=True)
    soft_capped = getattr(text, "attn_logit_softcapping", None) is not None
    supported = getattr(model_class, "_supports_sdpa", False)
    return "sdpa" if supported and not soft_capped else "eager"


def use_kernel(model: Any, kernel: Kernel) -> None:
    """Let a loaded model do its attention through Foreword's function for `kernel`."""
    with contextlib.suppress(ValueError):  # refused by models without the interface; the probe tells
        model.set_attn_implementation(IMPLEMENTATIONS[kernel])
    # T5's encoder and decoder keep copies of the config that the call above does not reach.
    for module in model.modules():
        if hasattr(module, "config") and hasattr(module.config, "_attn_implementation"):
            module.config._attn_implementation = IMPLEMENTATIONS[kernel]


def model_class(auto: Any, config: Any) -> Any:
    """The class that transformers' `auto` takes for `config`.

    Raises:
        UnsupportedArchitecture: it has none.
    """
    try:
        return auto._model_mapping[type(config)]
    except KeyError as error:
        raise UnsupportedArchitecture(
            f"transformers has no language model for model type {config.model_type!r}; Foreword needs a "
            "decoder-only or an encoder-decoder language model"
        ) from error


def choose_device(device: str | torch.device) -> str | torch.device:
    """The device that was asked for; for "auto" CUDA or MPS where there is one, else the CPU."""
    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def choose_dtype(dtype: str | torch.dtype, device: str | torch.device) -> torch.dtype:
    """The data type that was asked for; for "auto" bfloat16 on GPUs that compute it, else float32.

    Raises:
        UsageError: a name that is none.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype != "auto":
        named = getattr(torch, dtype, None)
        if not isinstance(named, torch.dtype):
            raise UsageError(f"dtype is {dtype!r}; expected auto, float32, bfloat16 or float16")
        return named
    if str(device).startswith(("cuda", "balanced")):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    # Not even where a CPU computes bfloat16 fast: what is promised of rows and batches (same losses,
    # same tokens) holds to 1e-5 in float32 only. Whoever prefers speed asks for it.
    return torch.float32
