"""Conversations: OpenAI's fine-tuning files, ShareGPT's, and prompts that are lists of messages.

Each message of the assistant becomes an example, with the messages before it as its source; one that has
`"weight": 0` is context only, as OpenAI has it. What a server takes in a chat is taken here, too: a
developer's message is a system message, and parts that are all text are one text. Tools that a conversation
declares, and calls of them, are read in `tools.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from foreword.errors import BadExamples
from foreword.examples.example import Example, kind
from foreword.examples.jsonl import read_owner
from foreword.examples.records import Fields, Line, excerpt, missing_field
from foreword.examples.tools import call_in_text, read_calls, read_tools
from foreword.template import Message

ROLES = ("system", "user", "assistant", "tool")
_OTHER_NAMES = {"developer": "system", "function": "tool"}
_SHAREGPT_ROLES = (
    {"system": "system"}
    | dict.fromkeys(("human", "user"), "user")
    | dict.fromkeys(("gpt", "chatgpt", "assistant", "model", "function_call"), "assistant")
    | dict.fromkeys(("tool", "observation", "function_response"), "tool")
)
"""What ShareGPT's files call who speaks, those of LLaMA-Factory with calls of tools among them."""


def read_chat(line: Line, record: dict[str, Any], fields: Fields) -> Iterator[Example]:
    """Examples of an object with messages, each with role and content.

    Raises:
        BadExamples: names the line and the message that is no text, has an unknown role or calls a tool in a
            way that can't be read; and the line that holds nothing of the assistant to learn from.
    """
    messages = _messages(line, record, "messages", fields.messages)
    yield from _conversation(line, record, fields, messages)


def read_sharegpt(line: Line, record: dict[str, Any], fields: Fields) -> Iterator[Example]:
    """Examples of an object with conversations, each turn with from and value; a system message may stand
    beside them. A turn of the assistant at the very beginning answers nothing, and is context only.

    Raises:
        BadExamples: as `read_chat`.
    """
    messages = _messages(line, record, "conversations", fields.conversations)
    for message in messages:
        if not isinstance(message, dict) or _role(message) != "assistant":
            break
        message.setdefault("weight", 0)
    if system := record.get(fields.system):
        messages = [{"role": "system", "content": system}, *messages]
    yield from _conversation(line, record, fields, messages)


def read_prompt(line: Line, record: dict[str, Any], fields: Fields) -> Iterator[Example]:
    """Examples of an object with prompt and completion: two texts, or two lists of messages as TRL has them.

    Raises:
        BadExamples: one is text and the other a list, or as `read_chat`.
    """
    for part, name in (("prompt", fields.prompt), ("completion", fields.completion)):
        if name not in record:
            raise missing_field(line, part, name, record)
    prompt, completion = record[fields.prompt], record[fields.completion]
    if isinstance(prompt, str) and isinstance(completion, str):
        yield line.example(prompt, completion, read_owner(line, record, fields))
        return
    if not (isinstance(prompt, list) and isinstance(completion, list)):
        raise line.fault(
            f"{fields.prompt} is {kind(prompt)} and {fields.completion} is {kind(completion)}; expected two "
            "texts, or two lists of messages"
        )
    context = [{**each, "weight": 0} if isinstance(each, dict) else each for each in prompt]
    yield from _conversation(line, record, fields, [*context, *completion])


def read_alpaca(line: Line, record: dict[str, Any], fields: Fields) -> Iterator[Example]:
    """The example of an object with instruction, input and output; with system or history, as LLaMA-Factory
    has them, the examples of a conversation.

    Raises:
        BadExamples: a part is no text, or as `read_chat`.
    """
    instruction, output = (
        _text_field(line, record, part, getattr(fields, part)) for part in ("instruction", "output")
    )
    given = "" if record.get(fields.input) is None else _text_field(line, record, "input", fields.input)
    source = "\n".join(part for part in (instruction, given) if part.strip())
    system, history = record.get(fields.system), record.get(fields.history)
    if not system and not history:
        yield line.example(source, output, read_owner(line, record, fields))
        return
    messages = [{"role": "system", "content": system}] if system else []
    for pair in _pairs(line, fields.history, history or []):
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    messages += [{"role": "user", "content": source}, {"role": "assistant", "content": output}]
    yield from _conversation(line, record, fields, messages)


def _pairs(line: Line, name: str, history: Any) -> list[list[Any]]:
    if not isinstance(history, list) or not all(isinstance(one, list) and len(one) == 2 for one in history):
        raise line.fault(f"field {name!r} is {kind(history)}; expected a list of [question, answer]")
    return history


def _text_field(line: Line, record: dict[str, Any], part: str, name: str) -> str:
    if name not in record:
        raise missing_field(line, part, name, record)
    if not isinstance(record[name], str):
        raise line.fault(f"field {name!r} is {kind(record[name])}; expected text")
    return str(record[name])


# -- messages --------------------------------------------------------------------------------------


def _conversation(
    line: Line, record: dict[str, Any], fields: Fields, messages: list[Any]
) -> Iterator[Example]:
    owner = read_owner(line, record, fields)
    tools = read_tools(line, record, fields.tools)
    before: list[Message] = []
    called: dict[str, str] = {}  # names of the tools that were called, by the call's id
    learned = 0
    for number, given in enumerate(messages, 1):
        message = read_message(line, number, given, called)
        if message["role"] == "assistant" and _weight(line, number, given):
            if not before:
                raise line.fault(
                    'message 1 is the assistant\'s and answers nothing; give it "weight": 0 if it is '
                    "context only, or put a user's or system message in front of it"
                )
            target = message if "tool_calls" in message else message["content"]
            yield line.example(with_tools(before, tools), target, owner)
            learned += 1
        before.append(message)
    if not learned:
        raise line.fault(
            'no message of the assistant to learn from (one with "weight": 0 is context only); '
            "expected at least one"
        )


def with_tools(messages: list[Message], tools: list[dict[str, Any]]) -> tuple[Message, ...]:
    """The messages, the first of which has the tools; a system message without text where it isn't one."""
    if not tools:
        return tuple(messages)
    if messages[0]["role"] == "system":
        return ({**messages[0], "tools": tools}, *messages[1:])
    return ({"role": "system", "content": "", "tools": tools}, *messages)


def _messages(line: Line, record: dict[str, Any], part: str, name: str) -> list[Any]:
    if name not in record:
        raise missing_field(line, part, name, record)
    messages = record[name]
    if not isinstance(messages, list):
        raise line.fault(f"field {name!r} is {kind(messages)}; expected a list of messages")
    if not messages:
        raise line.fault("the conversation is empty; expected a user's message and the assistant's answer")
    return messages


def read_message(line: Line, number: int | str, message: Any, called: dict[str, str]) -> Message:
    """One message with role and content, and what it has of tools.

    Args:
        number: as messages have it: its place, or its place and where.
        called: names of the tools that were called, by the call's id; read and added to.

    Raises:
        BadExamples: as `read_chat`.
    """
    if not isinstance(message, dict):
        raise line.fault(f"message {number} is {kind(message)}; expected an object with role and content")
    role = _role(message)
    if role not in ROLES:
        raise _unknown_role(line, number, message)
    if message.get("from") == "function_call" and "role" not in message:
        calls = call_in_text(line, number, message.get("value"))
        return {"role": "assistant", "content": "", "tool_calls": calls}
    made: Message = {"role": str(role), "content": ""}
    if role == "assistant" and (calls := read_calls(line, number, message)):
        made["tool_calls"] = calls
        called |= {call["id"]: call["function"]["name"] for call in calls if "id" in call}
    if "tool_calls" not in made or message.get(_content_name(message)) is not None:
        made["content"] = _text(line, number, message)
    if role == "tool":
        identifier = message.get("tool_call_id")
        name = message.get("name") or called.get(str(identifier))
        made |= {} if identifier is None else {"tool_call_id": str(identifier)}
        made |= {} if name is None else {"name": str(name)}
    return made


def _role(message: Mapping[str, Any]) -> str | None:
    role = message.get("role")
    if role is None and isinstance(message.get("from"), str):
        return _SHAREGPT_ROLES.get(message["from"].lower())
    return _OTHER_NAMES.get(role, role) if isinstance(role, str) else None


def _content_name(message: Mapping[str, Any]) -> str:
    return "value" if "from" in message and "role" not in message else "content"


def _unknown_role(line: Line, number: int | str, message: Mapping[str, Any]) -> BadExamples:
    field, known = ("from", list(_SHAREGPT_ROLES)) if "from" in message else ("role", [*ROLES])
    role = message.get("role", message.get("from"))
    absent = "role" not in message and "from" not in message
    given = excerpt(role) if isinstance(role, str) else "absent" if absent else kind(role)
    return line.fault(
        f"the {field if field == 'role' else 'speaker'} of message {number} is {given}; "
        f"expected {', '.join(known)}"
    )


def _text(line: Line, number: int | str, message: Mapping[str, Any]) -> str:
    name = _content_name(message)
    content = message.get(name)
    if isinstance(content, str):
        return content
    given = kind(content) if name in message else "absent"
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
    if not isinstance(part, dict) or part.get("type") != "text":
        return None
    text = part.get("text", part.get("value"))  # the second is LLaMA-Factory's, as is loss_weight below
    return text if isinstance(text, str) else None


def _weight(line: Line, number: int, message: Mapping[str, Any]) -> bool:
    weight = message.get("weight", message.get("loss_weight"))
    if weight is None:  # absent, or as clients write what they leave out
        return True
    if weight not in (0, 1):
        given = str(weight) if isinstance(weight, float) else kind(weight)
        raise line.fault(f"the weight of message {number} is {given}; expected 0 or 1")
    return bool(weight)
