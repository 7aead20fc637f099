"""Reading files that others made: JSON and tensors, never code.

Pickles are read by torch's weights-only loader, which knows tensors and plain containers and calls
nothing else that a file may ask for.
"""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from foreword.errors import BadPrefix, CannotRead, ForeignFormat, UnsafePickle
from foreword.examples.example import kind


def read_json(path: Path, *, what: str) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        what: what kind of folder was expected, for errors.

    Raises:
        CannotRead: its folder is not there, or no right.
        ForeignFormat: no such file in the folder, or not a JSON object.
    """
    if not path.parent.is_dir():
        state = "a file" if path.parent.exists() else "not there"
        raise CannotRead(f"{path.parent} is {state}; expected {what}, which is a folder")
    if not path.is_file():
        raise ForeignFormat(
            f"{path.parent} has no {path.name}; expected {what}. It holds {_listing(path.parent)}"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CannotRead(f"{path} could not be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ForeignFormat(f"{path} is not JSON ({error}); expected {what}. Fetch it again") from error
    if not isinstance(content, dict):
        raise ForeignFormat(f"{path} holds {kind(content)}, not an object; expected {what}")
    return content


def find_file(folder: Path, names: Sequence[str], *, what: str) -> Path:
    """The first of `names` that is in `folder`.

    Raises:
        ForeignFormat: none is.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ForeignFormat(
        f"{folder} has none of {', '.join(names)}; expected {what}. It holds {_listing(folder)}"
    )


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a safetensors file or of a torch pickle, by name, on the CPU.

    Raises:
        CannotRead: absent, or no right.
        UnsafePickle: a pickle that asks for more than tensors; nothing of it was run.
        ForeignFormat: damaged, or something else than named tensors.
    """
    try:
        loaded = (
            safetensors.torch.load(path.read_bytes())
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except pickle.UnpicklingError as error:
        raise UnsafePickle(
            f"{path} is a pickle that asks for more than tensors, and such a file can run any code; "
            "nothing of it was loaded. If you trust where it comes from, load it with the library that "
            "made it and save the weights alone, best as safetensors"
        ) from error
    except OSError as error:
        raise CannotRead(f"{path} could not be read: {error.strerror or error}") from error
    except Exception as error:
        # Not narrower: on damaged bytes torch raises whatever its reader stumbles over.
        raise ForeignFormat(
            f"{path} is damaged or holds no tensors ({type(error).__name__}); fetch it again"
        ) from error
    values = list(loaded.values()) if isinstance(loaded, dict) else [loaded]
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in values):
        kinds = sorted({type(value).__name__ for value in values})
        raise ForeignFormat(f"{path} holds {', '.join(kinds)}; expected tensors by name")
    return {str(name): tensor.detach() for name, tensor in loaded.items()}


@contextlib.contextmanager
def naming(file: Path) -> Iterator[None]:
    """Put the file's name in front of errors about its content."""
    try:
        yield
    except BadPrefix as error:
        raise type(error)(f"{file}: {error}") from error


def _listing(folder: Path) -> str:
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return shown or "nothing"
