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
from foreword.template import Source, Target


@dataclass(frozen=True, slots=True)
class Example:
    """A source x and the target y that the model shall write after it.

    Attributes:
        source: text, or chat messages as a tuple of {"role", "content"} (template style `chat`). The first
            may have `tools`, those that the conversation declares (as a system message without text, where
            it has no other); the assistant's `tool_calls`, and a tool's `tool_call_id` and `name`.
        target: text, which must not be empty; or the assistant's message, if it has `tool_calls`.
        owner: the user or tenant the example belongs to; None when there is only one.
        place: file and line that it was read from, for messages; of no account otherwise.

    Raises:
        BadExamples: something else than text where text belongs, an empty target or owner, messages
            without role and content, or text that UTF-8 can't hold.
    """

    source: Source
    target: Target
    owner: str | None = None
    place: str | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        _check_source(self.source)
        _check_target("target", self.target)
        _check_owner(self.owner)

    @property
    def content(self) -> list[Any]:
        """What `digest` is taken of."""
        return [self.source, self.target, self.owner]

    @property
    def targets(self) -> tuple[Target, ...]:
        """All that is written after the source."""
        return (self.target,)


@dataclass(frozen=True, slots=True)
class Preference:
    """A source and two answers to it, of which the model shall rather write the first.

    Attributes:
        source: text, or chat messages, as of `Example`.
        chosen: the better answer, as a target of `Example`.
        rejected: the other one.
        owner: the user or tenant that the preference belongs to; None when there is only one.
        place: file and line that it was read from, for messages; of no account otherwise.

    Raises:
        BadExamples: answers that are equal or empty, and what `Example` refuses.
    """

    source: Source
    chosen: Target
    rejected: Target
    owner: str | None = None
    place: str | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        _check_source(self.source)
        _check_target("chosen", self.chosen)
        _check_target("rejected", self.rejected)
        _check_owner(self.owner)
        if self.chosen == self.rejected:
            raise BadExamples(
                "chosen and rejected are equal, so that neither is better; leave such a pair out"
            )

    @property
    def content(self) -> list[Any]:
        """What `digest` is taken of."""
        return [self.source, self.chosen, self.rejected, self.owner]

    @property
    def targets(self) -> tuple[Target, ...]:
        """Both answers."""
        return (self.chosen, self.rejected)


def kind(value: object) -> str:
    """What `value` is, in the words of a person who writes JSON."""
    names: dict[type, str] = {str: "text", bool: "true or false", int: "a number", float: "a number"}
    names |= {list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), f"of type {type(value).__name__}")


def _check_text(name: str, value: object) -> bool:
    if not isinstance(value, str):
        raise BadExamples(f"{name} is {kind(value)}; expected text")
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # JSON can spell half an emoji (\ud83d) that no tokenizer and no UTF-8 file can hold.
        raise BadExamples(
            f"{name} holds half of a surrogate pair at character {error.start + 1}: an emoji that was cut; "
            "remove it"
        ) from error
    return True


def _check_source(source: object) -> None:
    if isinstance(source, str):
        _check_text("source", source)
    elif isinstance(source, tuple):
        _check_messages(source)
    else:
        raise BadExamples(f"source is {kind(source)}; expected text or a tuple of messages")


def _check_target(name: str, target: object) -> None:
    if isinstance(target, dict):
        _check_calls(name, target)
    elif _check_text(name, target) and not str(target).strip():
        raise BadExamples(f"{name} is empty; there is nothing to learn from such an example, leave it out")


def _check_owner(owner: object) -> None:
    if owner is not None:
        _check_text("owner", owner)
        if not str(owner).strip():
            raise BadExamples("owner is empty; name the owner, or leave the field out everywhere")


def _check_messages(messages: tuple[object, ...]) -> None:
    if not messages:
        raise BadExamples("source has no messages; expected at least one in front of the target")
    for number, message in enumerate(messages, 1):
        first = {"tools"} if number == 1 else set()
        if not isinstance(message, dict) or not _NAMES <= set(message) <= _NAMES | _OF_TOOLS | first:
            given = sorted(map(str, message)) if isinstance(message, dict) else kind(message)
            raise BadExamples(f"message {number} of the source is {given}; expected role and content")
        _check_text(f"the role of message {number}", message["role"])
        _check_text(f"the content of message {number}", message["content"])
        for name in (_OF_TOOLS | first) & set(message):
            _check_json(f"{name} of message {number}", message[name])


_NAMES = {"role", "content"}
_OF_TOOLS = {"tool_calls", "tool_call_id", "name"}


def _check_calls(name: str, target: dict[Any, Any]) -> None:
    """Refuse a message as a target (or answer) that is not the assistant's with calls of tools."""
    if set(target) != {"role", "content", "tool_calls"} or target["role"] != "assistant":
        raise BadExamples(
            f"{name} is an object with {sorted(map(str, target))}; expected text, or the assistant's "
            "message: role, content and tool_calls"
        )
    _check_text(f"the content of the {name}", target["content"])
    if not target["tool_calls"]:
        raise BadExamples(f"{name} has no tool_calls; give its content alone, as text")
    _check_json(f"tool_calls of the {name}", target["tool_calls"])


def _check_json(name: str, value: object) -> None:
    """Refuse what is no JSON, or holds text that UTF-8 can't."""
    try:
        _check_text(name, json.dumps(value, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise BadExamples(f"{name} can't be written as JSON: {error}") from error


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
    """Entries as they are; examples of one source (and owner) brought together, where the first stood.

    Raises:
        BadExamples: an example whose target calls tools, which is no text to compare with.
    """
    groups: dict[object, Entry | list[Example]] = {}
    for place, one in enumerate(data):
        if isinstance(one, Entry):
            groups[place] = one
            continue
        group = groups.setdefault((one.owner, source_key(one.source)), [])
        assert isinstance(group, list)
        group.append(one)
    return [
        one if isinstance(one, Entry) else Entry(one[0].source, tuple(map(text_of, one)), owner=one[0].owner)
        for one in groups.values()
    ]


def text_of(example: Example) -> str:
    """The target of an example that is a text. Raises BadExamples: it calls tools."""
    if isinstance(example.target, str):
        return example.target
    where = "" if example.place is None else f"{example.place}: "
    raise BadExamples(
        f"{where}the target calls tools, and can be trained on, but is no text to compare with; leave it out"
    )


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
