"""Plain data: checks that a dataclass read from a foreign file holds what it declares."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from foreword.errors import UsageError


def check_fields(instance: Any) -> None:
    """Compare every field of a dataclass of plain data with its declared type.

    Raises:
        UsageError: names the field, what was found and what was expected.
    """
    hints = typing.get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if not _fits(value, hints[field.name]):
            expected = getattr(hints[field.name], "__name__", None) or str(hints[field.name])
            raise UsageError(f"{field.name} is {value!r}; expected {expected.replace('typing.', '')}")


def is_text_mapping(value: object) -> bool:
    """Whether `value` is a mapping of text to text."""
    return isinstance(value, Mapping) and all(
        isinstance(k, str) and isinstance(v, str) for k, v in value.items()
    )


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if origin is typing.Literal:
        return isinstance(value, str) and value in typing.get_args(hint)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
