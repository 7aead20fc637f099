"""Loading: base models and prefixes as the options name them, with nothing but notes on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from foreword.errors import CannotRead, UnknownModel, UsageError

if TYPE_CHECKING:
    from foreword.base.base_model import BaseModel
    from foreword.prefix import Prefix

NO_PREFIX = "none"


def load_base(name: str, *, device: str, dtype: str, attention: Any, quantization: Any = None) -> BaseModel:
    """The base model called `name`.

    Raises:
        UsageError: a device that is unknown or absent here, or quantization that can't be had.
        UnknownModel, CannotRead, DownloadFailed, UnsupportedArchitecture: see `BaseModel.load`.
    """
    import torch
    from transformers.utils import logging

    from foreword.base.base_model import BaseModel

    # Bars and remarks about weights are for who writes models, not for who uses one.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    _check_device(torch, device)
    return BaseModel.load(
        name,
        device=device,
        dtype=dtype,
        attention=attention,
        quantization=quantization,
        notify=lambda line: typer.echo(line, err=True),
    )


def load_prefixes(names: Sequence[str]) -> list[Prefix | None]:
    """Prefix files in the order of `names`; None for `none`. The same file is read once."""
    from foreword.prefix import Prefix

    read = {name: Prefix.load(Path(name)) for name in dict.fromkeys(names) if name != NO_PREFIX}
    return [read.get(name) for name in names]


def load_base_of(
    prefixes: Sequence[Prefix | None],
    base: str | None,
    *,
    device: str,
    dtype: str,
    attention: Any,
    quantization: Any = None,
) -> BaseModel:
    """The base model that was asked for, or else the one that the first prefix names.

    Raises:
        UsageError: neither was given.
        UnknownModel, CannotRead: the prefix names a model that is not to be found from here.
    """
    options = {"device": device, "dtype": dtype, "attention": attention, "quantization": quantization}
    if base is not None:
        return load_base(base, **options)
    named = next((prefix.base.name for prefix in prefixes if prefix is not None), None)
    if named is None:
        raise UsageError("no base model: give --base, or a --prefix that names one")
    try:
        return load_base(named, **options)
    except (UnknownModel, CannotRead) as error:
        raise type(error)(
            f"the prefix was trained for {named!r}, and {error}. Say where it is now with --base"
        ) from error


def _check_device(torch: Any, device: str) -> None:
    if device in ("auto", "balanced"):
        return
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UsageError(
            f"device is {device!r}; expected auto, cpu, cuda, cuda:1, mps or balanced"
        ) from error
    absent = (kind == "cuda" and not torch.cuda.is_available()) or (
        kind == "mps" and not torch.backends.mps.is_available()
    )
    if absent:
        raise UsageError(f"device is {device!r}, but torch finds none here; take --device cpu, or auto")
