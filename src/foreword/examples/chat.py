"""Conversations as in OpenAI's fine-tuning files: an object with messages a line.

Each message of the assistant becomes an example, with the messages before it as its source; one
that has `"weight": 0` is context only, as OpenAI has it. What a server takes in a chat is taken here, too: a
developer's message is a system message, and parts that are all text are one text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from foreword.errors import BadExamples
from foreword.examples.example import Example, kind
from foreword.examples.jsonl import parse_objects, read_owner
from foreword.examples.records import Fields, Line, excerpt, missing_field
from foreword.template import Message

ROLES = ("system", "user", "assistant")
_OTHER_NAMES = {"developer": "system"}
_TOOL_FIELDS = ("tool_calls", "function_call")


def read_chat(lines: Iterator[Line], fields: Fields) -> Iterator[Example]:
    """Examples of a file of conversations.

    Raises:
        BadExamples: names the line and the message that is no text, has an unknown role or calls a
            tool; and the line that holds nothing of the assistant to learn from.
    """
    for line, record in parse_objects(lines):
        owner = read_owner(line, record, fields)
        yield from _conversation(line, record, fields.messages, owner)


def _conversation(line: Line, record: dict[str, Any], name: str, owner: str | None) -> Iterator[Example]:
    before: list[Message] = []
    learned = 0
    for number, message in enumerate(_messages(line, record, name), 1):
        role, content = _role_and_content(line, number, message)
        if role == "assistant" and _weight(line, number, message):
            if not before:
                raise line.fault(
                    'message 1 is the assistant\'s and answers nothing; give it "weight": 0 if it is '
                    "context only, or put a user's or system message in front of it"
                )
            yield line.example(tuple(before), content, owner)
            learned += 1
        before.append({"role": role, "content": content})
    if not learned:
        raise line.fault(
            'no message of the assistant to learn from (one with "weight": 0 is context only); '
            "expected at least one"
        )


def _messages(line: Line, record: dict[str, Any], name: str) -> list[Any]:
    if name not in record:
        raise missing_field(line, "messages", name, record)
    messages = record[name]
    if not isinstance(messages, list):
        raise line.fault(f"field {name!r} is {kind(messages)}; expected a list of messages")
    if not messages:
        raise line.fault("the conversation is empty; expected a user's message and the assistant's answer")
    for field in ("tools", "functions"):
        if record.get(field):
            raise _tools(line, f"the conversation declares {field}")
    return messages


def _role_and_content(line: Line, number: int, message: Any) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise line.fault(f"message {number} is {kind(message)}; expected an object with role and content")
    for field in _TOOL_FIELDS:
        if message.get(field):
            raise _tools(line, f"message {number} has {field}")
    role = message.get("role")
    if isinstance(role, str):
        role = _OTHER_NAMES.get(role, role)
    if role in ("tool", "function"):
        raise _tools(line, f"message {number} has the role {role!r}")
    if role not in ROLES:
        given = excerpt(role) if isinstance(role, str) else kind(role) if "role" in message else "absent"
        raise line.fault(f"the role of message {number} is {given}; expected {', '.join(ROLES)}")
    return str(role), _text(line, number, message)


def _text(line: Line, number: int, message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    given = kind(content) if "content" in message else "absent"
    if isinstance(content, list):
        texts = [_text_of_part(part) for part in content]
        if texts and None not in texts:
            return "".join(text for text in texts if text is not None)
        types = {str(part.get("type"))[:20] for part in content if isinstance(part, dict)}
        given = f"a list of parts ({', '.join(sorted(types)[:5]) or 'none'})"
    raise line.fault(
        f"the content of message {number} is {given}; expected text: Foreword's base models read text only"
    )


def _text_of_part(part: Any) -> str | None:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    return None


def _weight(line: Line, number: int, message: dict[str, Any]) -> bool:
    weight = message.get("weight")
    if weight is None:  # absent, or as clients write what they leave out
        return True
    if weight not in (0, 1):
        given = str(weight) if isinstance(weight, float) else kind(weight)
        raise line.fault(f"the weight of message {number} is {given}; expected 0 or 1")
    return bool(weight)


def _tools(line: Line, what: str) -> BadExamples:
    return line.fault(f"{what}; tool calls can't be trained on here, leave such conversations out")
