"""Reading preferences: a source with two answers, of which people like one better.

Three forms are read. TRL's has `prompt`, `chosen` and `rejected`: three texts, or three lists of messages; or
`chosen` and `rejected` as two whole conversations that differ in their last message. OpenAI's has `input`,
whose messages are answered, `preferred_output` and `non_preferred_output`. LLaMA-Factory's has
`conversations`, and `chosen` and `rejected` as a message each.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from foreword.errors import BadExamples, UnknownField
from foreword.examples.chat import read_message, with_tools
from foreword.examples.example import Preference, kind
from foreword.examples.jsonl import read_owner
from foreword.examples.records import Fields, Line, excerpt, missing_field
from foreword.examples.tools import read_tools
from foreword.template import Message, Source, Target

ANSWERS = {"chosen": "preferred_output", "rejected": "non_preferred_output"}
"""What TRL and OpenAI call the better answer and the other one."""
EXPECTED = "prompt, chosen and rejected, or OpenAI's input, preferred_output and non_preferred_output"


def is_preference(names: Collection[str]) -> bool:
    """Whether a record with fields of these names has an answer that a form calls the better or worse one."""
    return any(name in names for pair in ANSWERS.items() for name in pair)


def refuse_preference(line: Line, names: Collection[str]) -> None:
    """Refuse a preference where examples are expected. Raises BadExamples."""
    if is_preference(names):
        listed = ", ".join(map(repr, list(names)[:12]))
        raise line.fault(
            f"found {listed}: a preference between two answers, and supervised training learns from examples",
            advice="read it with read_preferences and train with method='dpo', or give a file of examples",
            remedy="preferences for supervised",
        )


def no_preference(line: Line, names: Collection[str], fields: Fields, *, example: bool) -> BadExamples:
    """The error for a record without both answers; `example`: it is in a form of examples."""
    listed = ", ".join(map(repr, list(names)[:12])) or "none"
    given = [{getattr(fields, part), other} & set(names) for part, other in ANSWERS.items()]
    missing = [part for part, there in zip(ANSWERS, given, strict=True) if not there] or list(ANSWERS)
    openai = bool(set(ANSWERS.values()) & set(names))
    name = ANSWERS[missing[0]] if openai else getattr(fields, missing[0])
    if len(missing) == 1:
        return UnknownField(f"{line.place}: no field {name!r}; found {listed}; expected {EXPECTED}", *missing)
    message = f"no preference; found {listed}; expected {EXPECTED}"
    if example:
        advice = "a file of examples is learned from with method='supervised'"
        return line.fault(message, advice=advice, remedy="examples for dpo")
    return UnknownField(f"{line.place}: {message}", *missing)


def read_preference(line: Line, record: dict[str, Any], fields: Fields) -> Iterator[Preference]:
    """The preference of an object: what is answered, and both answers.

    Raises:
        BadExamples: names the line and the field that is absent or no text or message of the assistant; two
            answers that are equal, or are several messages.
    """
    for part in ANSWERS:
        if getattr(fields, part) not in record:
            raise missing_field(line, part, getattr(fields, part), record)
    better, worse = record[fields.chosen], record[fields.rejected]
    name, asked = fields.prompt, record.get(fields.prompt)
    if asked is None and record.get(fields.conversations) is not None:
        name, asked = fields.conversations, record[fields.conversations]
        better, worse = ([one] if isinstance(one, dict) else one for one in (better, worse))
    owner, declaring = read_owner(line, record, fields), record
    if isinstance(asked, dict):  # OpenAI's
        if "messages" not in asked:
            listed = ", ".join(map(repr, list(asked)[:12])) or "none"
            raise line.fault(f"{name} has no field 'messages'; found {listed}")
        declaring, name, asked = asked, f"{name}.messages", asked["messages"]
    # As TRL does: of a text beside two conversations, these hold the messages.
    elif isinstance(better, list) and isinstance(worse, list) and not isinstance(asked, list):
        name, asked, better, worse = _divided(line, fields, better, worse)
    source: Source
    answers: list[Target]
    if isinstance(asked, str):
        source, answers = asked, [_text(line, fields.chosen, better), _text(line, fields.rejected, worse)]
    else:
        before, called = _messages(line, name, asked, record.get(fields.system))
        source = with_tools(before, read_tools(line, declaring, fields.tools))
        named = ((fields.chosen, better), (fields.rejected, worse))
        answers = [_answer(line, name, answer, called) for name, answer in named]
    try:
        yield Preference(source, answers[0], answers[1], owner, line.place)
    except BadExamples as error:
        message = str(error)
        for part in ANSWERS:
            message = message.replace(part, getattr(fields, part), 1)
        raise line.fault(message) from error


def _divided(
    line: Line, fields: Fields, better: list[Any], worse: list[Any]
) -> tuple[str, list[Any], list[Any], list[Any]]:
    """What two conversations have in common, with a name for it, and the rest of each."""
    pairs = zip(better, worse, strict=False)
    alike = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    both = f"{fields.chosen} and {fields.rejected}"
    if better == worse:
        raise line.fault(f"{both} are equal, so that neither is better; leave such a pair out")
    if not alike:
        raise line.fault(
            f"{both} begin with different messages, and no messages are in {fields.prompt!r}; expected what "
            "is answered there, or at the beginning of both"
        )
    return f"the beginning that {both} share", better[:alike], better[alike:], worse[alike:]


def _text(line: Line, name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise line.fault(f"field {name!r} is {kind(value)}; expected text, as what is answered is")
    return value


def _messages(line: Line, name: str, value: Any, system: Any) -> tuple[list[Message], dict[str, str]]:
    """The messages that are answered, and what they call by the calls' ids."""
    if not isinstance(value, list):
        given = "absent" if value is None else kind(value)
        raise line.fault(f"field {name!r} is {given}; expected the text or the messages that are answered")
    if not value:
        raise line.fault(f"{name} has no messages; expected at least a user's message")
    called: dict[str, str] = {}
    before: list[Message] = (
        [{"role": "system", "content": system}] if isinstance(system, str) and system else []
    )
    read = (read_message(line, f"{number} of {name}", one, called) for number, one in enumerate(value, 1))
    return [*before, *read], called


def _answer(line: Line, name: str, value: Any, called: Mapping[str, str]) -> Target:
    """The one message of the assistant: its text, or the message if it calls tools."""
    if not isinstance(value, list):
        raise line.fault(f"field {name!r} is {kind(value)}; expected a list with a message of the assistant")
    if len(value) != 1:
        raise line.fault(
            f"{name} has {len(value) or 'no'} messages; expected one, of the assistant. Messages before the "
            "last answer belong to what is answered"
        )
    message = read_message(line, f"1 of {name}", value[0], dict(called))
    if message["role"] != "assistant":
        raise line.fault(f"the role of message 1 of {name} is {excerpt(message['role'])}; expected assistant")
    return message if "tool_calls" in message else message["content"]
