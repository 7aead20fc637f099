"""Example, what a prefix learns from: a source with its target; and Entry, a source with all its references.

Training data is a list of examples, whose digest is noted in the prefix file. A task's official data is a
list of entries: each source is generated once, and scored against every text that people wrote for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from foreword.errors import BadExamples
from foreword.template import Source


@dataclass(frozen=True, slots=True)
class Example:
    """A source x and the target y that the model shall write after it.

    Attributes:
        source: text, or chat messages as a tuple of {"role", "content"} (template style `chat`).
        target: text; must not be empty.
        owner: the user or tenant the example belongs to; None when there is only one.
        place: file and line that it was read from, for messages; of no account otherwise.

    Raises:
        BadExamples: something else than text where text belongs, an empty target or owner, messages
            without role and content, or text that UTF-8 can't hold.
    """

    source: Source
    target: str
    owner: str | None = None
    place: str | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.source, str):
            _check_text("source", self.source)
        elif isinstance(self.source, tuple):
            _check_messages(self.source)
        else:
            raise BadExamples(f"source is {kind(self.source)}; expected text or a tuple of messages")
        _check_text("target", self.target)
        if not self.target.strip():
            raise BadExamples("target is empty; there is nothing to learn from such an example, leave it out")
        if self.owner is not None:
            _check_text("owner", self.owner)
            if not self.owner.strip():
                raise BadExamples("owner is empty; name the owner, or leave the field out everywhere")

    @property
    def content(self) -> list[Any]:
        """What `digest` is taken of."""
        return [self.source, self.target, self.owner]


@dataclass(frozen=True, slots=True)
class Preference:
    """A source and two answers to it, of which the model shall rather write the first.

    Attributes:
        source: text, or chat messages, as of `Example`.
        chosen: the better answer.
        rejected: the other one.
        owner: the user or tenant that the preference belongs to; None when there is only one.
        place: file and line that it was read from, for messages; of no account otherwise.

    Raises:
        BadExamples: answers that are equal or empty, and what `Example` refuses.
    """

    source: Source
    chosen: str
    rejected: str
    owner: str | None = None
    place: str | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name, answer in (("chosen", self.chosen), ("rejected", self.rejected)):
            try:
                Example(self.source, answer, self.owner)
            except BadExamples as error:
                message = str(error)
                if message.startswith("target "):  # the one fault that is not of the source or the owner
                    message = f"{name} {message.removeprefix('target ')}"
                raise BadExamples(message) from error
        if self.chosen == self.rejected:
            raise BadExamples(
                "chosen and rejected are equal, so that neither is better; leave such a pair out"
            )

    @property
    def content(self) -> list[Any]:
        """What `digest` is taken of."""
        return [self.source, self.chosen, self.rejected, self.owner]


def kind(value: object) -> str:
    """What `value` is, in the words of a person who writes JSON."""
    names: dict[type, str] = {str: "text", bool: "true or false", int: "a number", float: "a number"}
    names |= {list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), f"of type {type(value).__name__}")


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise BadExamples(f"{name} is {kind(value)}; expected text")
    if value.isascii():
        return
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # JSON can spell half an emoji (\ud83d) that no tokenizer and no UTF-8 file can hold.
        raise BadExamples(
            f"{name} holds half of a surrogate pair at character {error.start + 1}: an emoji that was cut; "
            "remove it"
        ) from error


def _check_messages(messages: tuple[object, ...]) -> None:
    if not messages:
        raise BadExamples("source has no messages; expected at least one in front of the target")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            given = sorted(map(str, message)) if isinstance(message, dict) else kind(message)
            raise BadExamples(f"message {number} of the source is {given}; expected role and content")
        _check_text(f"the role of message {number}", message["role"])
        _check_text(f"the content of message {number}", message["content"])


# Changing what `digest` does gives all data new identities; then raise the number.
_FORM = b"foreword examples 1\n"


class _Content(Protocol):
    """An example, or a preference between two answers."""

    @property
    def content(self) -> list[Any]: ...


def digest(examples: Iterable[_Content]) -> str:
    """SHA-256, in hexadecimal, of the examples in their order.

    It depends on sources, targets and owners alone: the same examples from CSV and from JSON lines
    have the same digest. Each example is hashed as one line of ASCII JSON, `[source,target,owner]`
    without spaces and with the keys of messages in alphabetical order; a preference as
    `[source,chosen,rejected,owner]`.
    """
    whole = hashlib.sha256(_FORM)
    for example in examples:
        line = json.dumps(example.content, separators=(",", ":"), sort_keys=True)
        whole.update(line.encode("ascii") + b"\n")
    return whole.hexdigest()


def source_key(source: Source) -> tuple[bool, str]:
    """Equal for equal sources, and for no others; texts and messages never are."""
    is_text = isinstance(source, str)
    return is_text, str(source) if is_text else json.dumps(source)


@dataclass(frozen=True, slots=True)
class Entry:
    """One source of a task's data with every text that people wrote for it.

    Two entries may have the same source; they stay two, as in the official evaluations. (Merged, outputs
    and references of the original prefix-tuning code fell out of step.)

    Attributes:
        source: as the model reads it.
        references: at least one.
        category: what the data calls its kind (WebNLG: Airport, Food, ...), or None.
        owner: whose it is, or None.
        unfit: references that are scored against but not trained on (WebNLG: comment other than good).
    """

    source: Source
    references: tuple[str, ...]
    category: str | None = None
    owner: str | None = None
    unfit: tuple[str, ...] = ()


def entries_of(data: Iterable[Example | Entry]) -> list[Entry]:
    """Entries as they are; examples of one source (and owner) brought together, where the first stood."""
    groups: dict[object, Entry | list[Example]] = {}
    for place, one in enumerate(data):
        if isinstance(one, Entry):
            groups[place] = one
            continue
        group = groups.setdefault((one.owner, source_key(one.source)), [])
        assert isinstance(group, list)
        group.append(one)
    return [
        one
        if isinstance(one, Entry)
        else Entry(one[0].source, tuple(e.target for e in one), owner=one[0].owner)
        for one in groups.values()
    ]


def references(examples: Iterable[Example]) -> list[tuple[Source, list[str]]]:
    """Each distinct source of each owner with all its targets, for metrics with several references.

    Sources come in the order in which they are first seen, targets in theirs; nothing is dropped.
    """
    return [(entry.source, list(entry.references)) for entry in entries_of(examples)]


def examples_of(entries: Sequence[Entry], *, fit_only: bool = True) -> list[Example]:
    """An example for each reference.

    Args:
        fit_only: leave out the references marked as not fit for training.
    """
    return [
        Example(entry.source, reference, entry.owner)
        for entry in entries
        for reference in entry.references
        if not (fit_only and reference in entry.unfit)
    ]
