"""GGUF to a folder of safetensors, config and tokenizer that transformers loads like any other.

Weights are unpacked to float32, as GGUF defines the values; float16 or bfloat16 would round them
once more.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foreword.errors import CannotRead, UnsupportedArchitecture
from foreword.models.tokenizer import tokenizer_from_gguf


def read_fields(gguf: Path) -> dict[str, Any]:
    """Metadata of a GGUF file as plain values.

    Raises:
        CannotRead: it is absent, cut off, or no GGUF file.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(gguf)
        return {name: field.contents() for name, field in reader.fields.items()}
    except (OSError, ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise CannotRead(f"{gguf} can't be read as a GGUF file: {error}") from error


def convert(gguf: Path, folder: Path) -> None:
    """Write model and tokenizer of `gguf` into the empty `folder`.

    Raises:
        CannotRead: no GGUF file.
        UnsupportedArchitecture: transformers or Foreword can't read this kind of model.
        OSError: `folder` can't be written.
    """
    tokenizer = tokenizer_from_gguf(read_fields(gguf))
    with _quiet():
        _dense_model(gguf).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _dense_model(gguf: Path) -> Any:
    """A plain float32 model with the file's weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, **_unpacked()
        )
    except (ValueError, KeyError, NotImplementedError) as error:
        raise UnsupportedArchitecture(f"{gguf.name} can't be turned into a model: {error}") from error
    settings = loaded.config.to_dict()
    # The loaded model calls itself quantized and refuses to be saved, so its (already dense) weights
    # move to a model that never was.
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path", "model_type"):
        settings.pop(key, None)
    config = AutoConfig.for_model(loaded.config.model_type, **settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict(), strict=True, assign=True)
    model.tie_weights()
    if wrong := [name for name, value in model.named_parameters() if value.dtype != torch.float32]:
        raise UnsupportedArchitecture(f"{gguf.name}: {wrong[0]} was not unpacked to float32")
    return model


def _unpacked() -> dict[str, Any]:
    """Ask for dense weights, where transformers would otherwise keep the packed blocks."""
    try:
        from transformers import GgufConfig
    except ImportError:  # before packed loading existed, every load was dense
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' advice on quantized models and its progress bars off the user's screen.

    One of the bars listens to no setting, hence the redirection; errors are raised, not printed.
    """
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
