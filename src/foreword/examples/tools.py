"""Tools that a conversation declares, and the assistant's calls of them, as OpenAI's files have them.

Read into what transformers' chat templates take: a declaration has its function in `function`, and a call's
arguments are an object, where a file has them as JSON in a text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from foreword.errors import BadExamples
from foreword.examples.example import kind
from foreword.examples.records import Line, excerpt

Json = dict[str, Any]


def read_tools(line: Line, record: Mapping[str, Any], name: str) -> list[Json]:
    """The tools that a conversation declares; a list, or one as JSON in a text; `functions` as of old.

    Raises:
        BadExamples: what is declared is no list of functions with names.
    """
    field = name if record.get(name) else "functions"
    tools = record.get(field)
    if not tools:
        return []
    if isinstance(tools, str):
        tools = _parsed(line, f"field {field!r} is text that is", tools)
        if not tools:
            return []
    if not isinstance(tools, list):
        raise line.fault(f"field {field!r} is {kind(tools)}; expected a list of tools")
    return [_tool(line, number, tool) for number, tool in enumerate(tools, 1)]


def _tool(line: Line, number: int, tool: Any) -> Json:
    function = tool.get("function", tool) if isinstance(tool, dict) else tool
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        given = f"an object with {_names(function)}" if isinstance(function, dict) else kind(function)
        raise line.fault(f"tool {number} is {given}; expected a function with a name")
    return {"type": "function", "function": {key: function[key] for key in function if key != "type"}}


def read_calls(line: Line, number: int | str, message: Mapping[str, Any]) -> list[Json]:
    """The calls of tools in the assistant's message `number`; `function_call` as of old.

    Raises:
        BadExamples: names the message and the call that has no name, or arguments that are no JSON object.
    """
    calls = message.get("tool_calls")
    if not calls and message.get("function_call"):
        calls = [{"function": message["function_call"]}]
    if not calls:
        return []
    if not isinstance(calls, list):
        raise line.fault(f"tool_calls of message {number} is {kind(calls)}; expected a list of calls")
    return [
        _call(line, f"tool call {place} of message {number}", call) for place, call in enumerate(calls, 1)
    ]


def call_in_text(line: Line, number: int | str, text: Any) -> list[Json]:
    """The call, or calls, that a turn of ShareGPT's form holds as JSON with name and arguments.

    Raises:
        BadExamples: as `read_calls`.
    """
    what = f"message {number} is a call of a tool, and its text"
    if not isinstance(text, str):
        raise line.fault(f"{what} is {kind(text)}; expected a JSON object with name and arguments")
    found = _parsed(line, f"{what} is", text)
    calls = found if isinstance(found, list) else [found]
    if not calls:
        raise line.fault(f"{what} is an empty list; expected a JSON object with name and arguments")
    return [
        _call(line, f"tool call {place} of message {number}", {"function": call})
        for place, call in enumerate(calls, 1)
    ]


def _call(line: Line, what: str, call: Any) -> Json:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        given = f"an object with {_names(call)}" if isinstance(call, dict) else kind(call)
        raise line.fault(f"{what} is {given}; expected a function with name and arguments")
    arguments = function.get("arguments")
    for _ in range(2):  # OpenAI's own examples have some whose JSON stands in a text of JSON
        if isinstance(arguments, str):
            arguments = _parsed(line, f"the arguments of {what}, {excerpt(function['name'])}, are", arguments)
    if not isinstance(arguments, dict):
        raise line.fault(f"the arguments of {what} are {kind(arguments)}; expected a JSON object")
    made: Json = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return made if call.get("id") is None else {"id": str(call["id"]), **made}


def _parsed(line: Line, what: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _broken(line, what, f"{error.msg} at character {error.pos + 1}", text) from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits; nesting without end
        raise _broken(line, what, str(error), text) from error


def _broken(line: Line, what: str, why: str, text: str) -> BadExamples:
    return line.fault(f"{what} not JSON: {why}, in {excerpt(text)}; write them as one JSON value")


def _names(record: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, list(record)[:8])) or "nothing"
