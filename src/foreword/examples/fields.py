"""Fields: which field or column of the user's data holds which part of an example."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from foreword.errors import BadExamples, UsageError
from foreword.examples.records import Line


@dataclass(frozen=True)
class Fields:
    """Names of fields in the data.

    Attributes:
        owner_named: the user named the owner's field, so that a line without it, or with null in it, is a
            fault.
    """

    source: str = "source"
    target: str = "target"
    owner: str = "owner"
    messages: str = "messages"
    owner_named: bool = False


def make_fields(mapping: Mapping[str, str] | None) -> Fields:
    """`Fields` from what the user passed as `fields=`.

    Raises:
        UsageError: a key that is no part of an example, or a name that is not text.
    """
    known = ("source", "target", "owner", "messages")
    for part, name in (mapping or {}).items():
        if part not in known:
            raise UsageError(f"fields has the key {part!r}; expected {', '.join(known)}")
        if not isinstance(name, str) or not name:
            raise UsageError(f"fields[{part!r}] is {name!r}; expected the name of a field")
    return Fields(**(mapping or {}), owner_named="owner" in (mapping or {}))


def missing_field(line: Line, part: str, name: str, present: Collection[str]) -> BadExamples:
    """The error for a line in which the field `name`, that should hold `part`, is absent."""
    found = ", ".join(map(repr, list(present)[:12])) if present else "none"
    return line.fault(
        f'no field {name!r}; found {found}; if it has another name, say so with fields={{"{part}": "…"}}'
    )
