"""The forms of training examples that people have, and which of them a record is in.

A form says which parts an example is made of and how a record with them is read. It does not know whether the
record stood in JSON lines, a JSON array, CSV or Parquet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from foreword.errors import UnknownField, UsageError
from foreword.examples.chat import read_alpaca, read_chat, read_prompt, read_sharegpt
from foreword.examples.example import Example, Preference
from foreword.examples.jsonl import read_source_target
from foreword.examples.preferences import read_preference
from foreword.examples.records import Fields, Line


@dataclass(frozen=True)
class Form:
    """One form of examples, or that of preferences.

    Attributes:
        name: as `format` has it.
        title: as messages have it.
        required: the parts that tell the form, and that each record has.
        optional: parts that a record may have besides.
        others: field names under which a part is often found, where it has not its own.
    """

    name: str
    title: str
    required: tuple[str, ...]
    read: Callable[[Line, dict[str, Any], Fields], Iterator[Example | Preference]]
    optional: tuple[str, ...] = ()
    others: Mapping[str, str] = field(default_factory=dict)

    @property
    def parts(self) -> set[str]:
        """All parts whose fields can be named."""
        return {*self.required, *self.optional, "owner"}

    def names(self, fields: Fields) -> list[str]:
        """The fields that tell the form."""
        return [getattr(fields, part) for part in self.required]


FORMS = (
    Form("jsonl", "source and target", ("source", "target"), read_source_target),
    Form("chat", "OpenAI chat messages", ("messages",), read_chat, ("tools",)),
    Form(
        "sharegpt",
        "ShareGPT conversations",
        ("conversations",),
        read_sharegpt,
        ("system", "tools"),
        {"conversations": "conversation"},
    ),
    Form("prompt", "prompt and completion", ("prompt", "completion"), read_prompt, ("tools",)),
    Form(
        "alpaca",
        "Alpaca instructions",
        ("instruction", "output"),
        read_alpaca,
        ("input", "system", "history"),
        {"output": "response", "input": "context"},  # as Dolly's files call them
    ),
)
"""The first that fits a record is its form."""
PREFERENCES = Form(
    "preferences",
    "pairs of answers",
    ("chosen", "rejected"),
    read_preference,
    ("prompt", "conversations", "tools", "system"),
    # As OpenAI's files call them.
    {"chosen": "preferred_output", "rejected": "non_preferred_output", "prompt": "input"},
)
Learned = Literal["examples", "preferences", "either"]
"""What a file is read for."""
BY_NAME = {form.name: form for form in FORMS} | {"csv": FORMS[0]}


def candidates(name: str, mapped: Collection[str], learned: Learned = "examples") -> list[Form]:
    """The forms that a file can have.

    Args:
        name: of the form, or "auto".
        mapped: parts that the user named fields for.
        learned: of preferences alone, the form is told by the fields.

    Raises:
        UsageError: no form has these parts, or a form of examples for preferences.
    """
    if learned == "preferences":
        if name != "auto":
            raise UsageError(f"format is {name!r}, and preferences have none to name; leave it out")
        if wrong := sorted(set(mapped) - PREFERENCES.parts):
            raise UsageError(
                f"fields names {wrong[0]!r}, but preferences take {', '.join(sorted(PREFERENCES.parts))}"
            )
        return [PREFERENCES]
    if name != "auto":
        if name == "e2e":
            if mapped:
                raise UsageError(f"fields names {min(mapped)!r}, but the format e2e takes no fields at all")
            return []
        form = BY_NAME[name]
        if wrong := sorted(set(mapped) - form.parts):
            raise UsageError(
                f"fields names {wrong[0]!r}, but the format {name} takes {', '.join(sorted(form.parts))}"
            )
        return [form]
    forms = FORMS if learned == "examples" else (PREFERENCES, *FORMS)
    found = [form for form in forms if set(mapped) <= form.parts]
    if not found:
        raise UsageError(
            f"fields names {', '.join(sorted(mapped))}, which no format has together; expected parts of one: "
            + "; ".join(f"{form.name}: {', '.join(sorted(form.parts))}" for form in FORMS)
        )
    return found


def form_of(
    names: Collection[str], forms: Collection[Form], fields: Fields, mapped: Collection[str] = ()
) -> tuple[Form, Fields] | None:
    """The first form that a record with fields of these names is in, and the fields as it has them."""
    for form in forms:
        there = fields
        for part, other in form.others.items():
            if part not in mapped and getattr(fields, part) not in names and other in names:
                there = dataclasses.replace(there, **{part: other})  # type: ignore[arg-type]
        if all(name in names for name in form.names(there)):
            return form, there
    return None


def unknown_form(place: str, names: Collection[str], what: str = "fields") -> UnknownField:
    """The error for a record that is in no form."""
    listed = ", ".join(map(repr, list(names)[:12])) or "none"
    if {"role", "content"} <= set(names) or {"from", "value"} <= set(names):
        listed += ', as of one message; put {"messages": [...]} around those of each conversation'
    expected = "; ".join(f"{' and '.join(form.required)} ({form.name})" for form in FORMS)
    return UnknownField(f"{place}: found the {what} {listed}; expected those of one of {expected}", *PAIR)


PAIR = ("source", "target")
"""Parts that any data of two texts can be named for."""
