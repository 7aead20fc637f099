"""Reading preferences: a source with two answers, of which people like one better.

Two forms are read, an object a line. OpenAI's has `input`, whose messages are answered, `preferred_output`
and `non_preferred_output`. TRL's has `prompt`, `chosen` and `rejected`: three texts, or three lists of
messages; or `chosen` and `rejected` as two whole conversations that differ in their last message.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from foreword.errors import BadExamples, UsageError
from foreword.examples.example import Preference, kind
from foreword.examples.jsonl import object_or_none, parse_objects, read_owner
from foreword.examples.records import Fields, Line, excerpt, read_lines
from foreword.template import Message, Source

OPENAI = ("input", "preferred_output", "non_preferred_output")
TRL = ("prompt", "chosen", "rejected")
"""What each form calls the source, the better answer and the other one."""

_ROLES = ("system", "user", "assistant")
_OTHER_NAMES = {"developer": "system"}


def read_preferences(
    path: str | os.PathLike[str],
    *,
    fields: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> list[Preference]:
    """The preferences of one file of JSON lines, in their order.

    Args:
        path: as of `read_examples`.
        fields: names of your fields where they differ from TRL's or from `owner`, for instance
            `{"chosen": "good", "rejected": "bad", "owner": "user"}`.
        limit: stop after that many preferences; what follows in the file is not looked at.

    Raises:
        CannotRead: the file is absent, a folder, or can't be opened.
        BadExamples: the data has a fault; names file, line, what was found, expected and to do.
        UsageError: unknown fields, a limit below 1.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}; expected 1 or more, or None for all preferences")
    file = os.fspath(path)
    return list(iterate_preferences(read_lines(path), file, fields=fields, limit=limit))


def iterate_preferences(
    lines: Iterator[Line],
    file: str,
    *,
    fields: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> Iterator[Preference]:
    """As `read_preferences`, one at a time; `file` is what messages call the source of the lines."""
    given = dict(fields or {})
    for part, name in given.items():
        if part not in (*TRL, "owner"):
            raise UsageError(f"fields has the key {part!r}; expected {', '.join((*TRL, 'owner'))}")
        if not isinstance(name, str) or not name:
            raise UsageError(f"fields[{part!r}] is {name!r}; expected the name of a field")
    owner = Fields(owner=given.get("owner", "owner"), owner_named="owner" in given)
    names = tuple(given.get(part, part) for part in TRL)
    found = False
    for line, record in itertools.islice(parse_objects(lines), limit):
        found = True
        yield _preference(line, record, names, read_owner(line, record, owner))
    if not found:
        raise BadExamples(f"{file} is empty; expected at least one preference")


def are_preferences(lines: Iterator[Line]) -> tuple[bool, Iterator[Line]]:
    """Whether the first line that is not blank is a preference; and all lines, that one included."""
    for line in lines:
        if not line.blank:
            return is_preference(object_or_none(line.text) or {}), itertools.chain([line], lines)
    return False, iter(())


def is_preference(record: Mapping[str, Any]) -> bool:
    """Whether an object has an answer that a form calls the better or the worse one."""
    return any(name in record for form in (OPENAI, TRL) for name in form[1:])


def refuse_preference(line: Line) -> None:
    """Refuse a line of preferences where examples are expected. Raises BadExamples."""
    record = object_or_none(line.text) or {}
    if is_preference(record):
        listed = ", ".join(map(repr, list(record)[:12]))
        raise line.fault(
            f"found {listed}: a preference between two answers, and supervised training learns from examples",
            advice="read it with read_preferences and train with method='dpo', or give a file of examples",
            remedy="preferences for supervised",
        )


def _preference(line: Line, record: dict[str, Any], trl: tuple[str, ...], owner: str | None) -> Preference:
    names = OPENAI if any(name in record for name in OPENAI[1:]) else trl
    whole = names == trl and trl[0] not in record  # two conversations, the prompt in both
    missing = [name for name in names[whole:] if name not in record]
    if missing:
        raise _incomplete(line, record, names[whole:], missing)
    better, worse = record[names[1]], record[names[2]]
    source: Source
    # As TRL does: of a text beside two conversations, these hold the messages.
    if names == trl and isinstance(better, list) and isinstance(worse, list):
        whole = whole or not isinstance(record[trl[0]], list)
    if whole:
        source, better, worse = _divided(line, names, better, worse)
    else:
        source = _source(line, names[0], record[names[0]], openai=names == OPENAI)
    chosen, rejected = (
        _answer(line, name, answer, text=isinstance(source, str))
        for name, answer in ((names[1], better), (names[2], worse))
    )
    try:
        return Preference(source, chosen, rejected, owner, f"{line.file}, line {line.number}")
    except BadExamples as error:
        message = str(error)
        for ours, theirs in zip(TRL[1:], names[1:], strict=True):
            message = message.replace(ours, theirs, 1)
        raise line.fault(message) from error


def _incomplete(
    line: Line, record: dict[str, Any], names: Sequence[str], missing: Sequence[str]
) -> BadExamples:
    listed = ", ".join(map(repr, list(record)[:12])) or "none"
    if any(name in record for name in names[-2:]):
        return line.fault(
            f"no field {missing[0]!r}; found {listed}; expected {', '.join(names[:-1])} and {names[-1]}"
        )
    return line.fault(
        f"no preference; found {listed}; expected {', '.join(OPENAI[:-1])} and {OPENAI[-1]} (OpenAI), or "
        f"{', '.join(TRL[:-1])} and {TRL[-1]} (TRL)",
        advice="a file of examples is learned from with method='supervised'",
        remedy="examples for dpo",
    )


def _divided(
    line: Line, names: Sequence[str], better: Any, worse: Any
) -> tuple[tuple[Message, ...], list[Any], list[Any]]:
    """What two conversations have in common, and the rest of each."""
    for name, answer in zip(names[1:], (better, worse), strict=True):
        if not isinstance(answer, list):
            raise line.fault(
                f"field {name!r} is {kind(answer)}, and there is no {names[0]!r}; expected the text or the "
                f"messages that are answered in {names[0]!r}"
            )
    pairs = zip(better, worse, strict=False)
    alike = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    if better == worse:
        raise line.fault(
            f"{names[1]} and {names[2]} are equal, so that neither is better; leave such a pair out"
        )
    source = _messages(line, f"the beginning that {names[1]} and {names[2]} share", better[:alike])
    return source, better[alike:], worse[alike:]


def _source(line: Line, name: str, value: Any, *, openai: bool) -> Source:
    if openai:
        if not isinstance(value, dict):
            raise line.fault(f"field {name!r} is {kind(value)}; expected an object with messages")
        for tools in ("tools", "functions"):
            if value.get(tools):
                raise line.fault(
                    f"{name} declares {tools}; preferences are between texts here, not calls of tools; leave "
                    "such lines out"
                )
        if "messages" not in value:
            listed = ", ".join(map(repr, list(value)[:12])) or "none"
            raise line.fault(f"{name} has no field 'messages'; found {listed}")
        name, value = f"{name}.messages", value["messages"]
    elif isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise line.fault(f"field {name!r} is {kind(value)}; expected a list of messages")
    return _messages(line, name, value)


def _messages(line: Line, name: str, messages: list[Any]) -> tuple[Message, ...]:
    if not messages:
        raise line.fault(f"{name} has no messages; expected at least a user's message")
    return tuple(_message(line, f"message {number} of {name}", one) for number, one in enumerate(messages, 1))


def _answer(line: Line, name: str, value: Any, *, text: bool) -> str:
    """The text of an answer: as it stands, or of the one message of the assistant."""
    if text:
        if not isinstance(value, str):
            raise line.fault(f"field {name!r} is {kind(value)}; expected text, as the source is")
        return value
    if not isinstance(value, list):
        raise line.fault(f"field {name!r} is {kind(value)}; expected a list with a message of the assistant")
    if len(value) != 1:
        raise line.fault(
            f"{name} has {len(value) or 'no'} messages; expected one, of the assistant. Messages before the "
            "last answer belong to what is answered"
        )
    message = _message(line, f"the message of {name}", value[0])
    if message["role"] != "assistant":
        raise line.fault(
            f"the role of the message of {name} is {excerpt(message['role'])}; expected assistant"
        )
    return message["content"]


def _message(line: Line, what: str, message: Any) -> Message:
    if not isinstance(message, dict):
        raise line.fault(f"{what} is {kind(message)}; expected an object with role and content")
    role, content = message.get("role"), message.get("content")
    if isinstance(role, str):
        role = _OTHER_NAMES.get(role, role)
    if role not in _ROLES:
        given = excerpt(role) if isinstance(role, str) else kind(role) if "role" in message else "absent"
        raise line.fault(f"the role of {what} is {given}; expected {', '.join(_ROLES)}")
    if any(message.get(name) for name in ("tool_calls", "function_call")):
        raise line.fault(f"{what} calls a tool; preferences are between texts, leave such lines out")
    if isinstance(content, list) and content and all(_is_text(part) for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        given = kind(content) if "content" in message else "absent"
        if isinstance(content, list):
            types = sorted({str(part.get("type"))[:20] for part in content if isinstance(part, dict)})
            given = f"a list of parts ({', '.join(types[:5]) or 'none'})"
        raise line.fault(
            f"the content of {what} is {given}; expected text: Foreword's base models read text only"
        )
    return {"role": str(role), "content": content}


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
