"""Foreword: one frozen language model, a small learned prefix per task, per user, per document."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from foreword import _aliases
from foreword._version import __version__

if TYPE_CHECKING:
    from foreword.base.base_model import BaseModel
    from foreword.documents import compile_document
    from foreword.examples import Example, Preference
    from foreword.generation import generate
    from foreword.prefix import Prefix
    from foreword.store import PrefixStore
    from foreword.template import Template
    from foreword.training.train import train
    from foreword.training.train_many import train_many

__all__ = [
    "BaseModel",
    "Example",
    "Preference",
    "Prefix",
    "PrefixStore",
    "Template",
    "__version__",
    "compile_document",
    "generate",
    "train",
    "train_many",
]

# Imported when first used: the command line's help must not wait for torch.
_HOMES = {
    "BaseModel": "foreword.base.base_model",
    "Example": "foreword.examples",
    "Preference": "foreword.examples",
    "Prefix": "foreword.prefix",
    "PrefixStore": "foreword.store",
    "Template": "foreword.template",
    "compile_document": "foreword.documents.compile",
    "generate": "foreword.generation",
    "train": "foreword.training.train",
    "train_many": "foreword.training.train_many",
}

_aliases.install()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'foreword' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
