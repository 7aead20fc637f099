"""The form that a chat request asks of its answer, as a grammar; its tools, as chat templates take them."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from foreword.errors import BadSchema, TemplateRefuses, UsageError
from foreword.grammar import Grammar, json_grammar, json_rule
from foreword.prefix import Prefix
from foreword.serving import logs
from foreword.serving.api.state import RequestIdentity, ServerState
from foreword.serving.errors import Refused, shown
from foreword.serving.requests import ChatBody, ChosenTool, ToolCall
from foreword.template import Message

NOTHING = {"type": "object", "properties": {}}
"""The parameters of a function that declares none."""


def has_form(body: ChatBody) -> bool:
    """Whether a request says anything about the form of its answer, or has calls of tools."""
    calls = any(message.tool_calls or message.role == "tool" for message in body.messages)
    return bool(calls or body.tools or body.must_call or body.wants_json)


def _check(server: ServerState, prefix: Prefix | None, body: ChatBody) -> None:
    """Refuse what does not go together. Raises Refused: 400."""
    if body.must_call and not body.tools:
        raise _refused("tool_choice", "'tool_choice' asks for a call, and there are no 'tools'; give them.")
    names = [tool.function.name for tool in body.tools or ()]
    if isinstance(body.tool_choice, ChosenTool) and (name := body.tool_choice.function.name) not in names:
        raise _refused("tool_choice", f"Tool choice {shown(name)} not found in 'tools' parameter.")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise _refused("tools", f"Two functions have the name {shown(twice)}; give each its own.")
    calls = any(message.tool_calls or message.role == "tool" for message in body.messages)
    if body.may_call or calls:
        _check_tools(server, prefix, body, "tools" if body.may_call else "messages")
    if not (body.wants_json or body.may_call):
        return
    what = "response_format" if body.wants_json else "tools"
    for name, given in (("stop", body.stops), ("min_tokens", body.min_tokens)):
        if given:
            why = f"'{name}' could end the answer inside its JSON, or keep it from ending"
            raise _refused(name, f"{why}; leave it or '{what}' out.")


def _check_tools(server: ServerState, prefix: Prefix | None, body: ChatBody, param: str) -> None:
    style = server.served.template_of(prefix, chat=True, raw=bool(body.raw)).style
    try:
        if style != "chat":
            what = "raw text was asked for" if body.raw else f"{body.model} was trained on single texts"
            raise TemplateRefuses(f"{what}, which have no place for tools")
        if not server.served.chats:
            raise TemplateRefuses(f"{server.served.name} has no chat template")
        _ = server.served.tool_form
    except TemplateRefuses as error:
        raise Refused(
            400,
            f"This model takes no tools: {error.found}. Leave '{param}' out, or ask for JSON with "
            "'response_format'.",
            code="tools_not_supported",
            param=param,
        ) from error


def grammar_of(
    server: ServerState, identity: RequestIdentity, prefix: Prefix | None, body: ChatBody
) -> Grammar | None:
    """What the answer has to follow; None for any text. May take a moment: for a thread.

    Raises:
        Refused: 400, what does not go together, or a schema that can't be followed; says why.
    """
    _check(server, prefix, body)
    try:
        text = _grammar_text(server, body)
        return None if text is None else server.served.grammars.compile(text, identity.account)
    except BadSchema as error:
        param = "tools" if body.may_call else "response_format"
        raise Refused(
            400, f"Invalid schema for '{param}': {error.found}.", code="invalid_json_schema", param=param
        ) from error
    except UsageError as error:  # llguidance is not there, or can't read the tokenizer: not for callers
        logs.event("schemas can't be followed", why=error.found)
        param = "tools" if body.may_call else "response_format"
        message = f"This server can't follow schemas; leave '{param}' out, or ask its administrator."
        raise Refused(400, message, code="unsupported_parameter", param=param) from error


def _grammar_text(server: ServerState, body: ChatBody) -> str | None:
    if not body.may_call:
        return json_grammar(_schema(body)) if body.wants_json else None
    chosen = body.tool_choice.function.name if isinstance(body.tool_choice, ChosenTool) else None
    tools = [
        (tool.function.name, NOTHING if tool.function.parameters is None else tool.function.parameters)
        for tool in body.tools or ()
        if chosen in (None, tool.function.name)
    ]
    return server.served.tool_form.grammar(
        tools,
        forced=body.must_call,
        several=body.parallel_tool_calls is not False,
        text=json_rule(_schema(body)) if body.wants_json else None,
    )


def _schema(body: ChatBody) -> Any:
    given = body.response_format.json_schema if body.response_format else None
    return {"type": "object"} if given is None or given.schema_ is None else given.schema_


def chat_messages(body: ChatBody) -> tuple[Message, ...]:
    """The messages as chat templates take them: the tools with the first one, arguments as objects."""
    called: dict[str, str] = {}  # names of functions, by the id of the call
    messages = []
    for one in body.messages:
        message: Message = {"role": "system" if one.role == "developer" else one.role, "content": one.text}
        if one.tool_calls:
            called |= {call.id: call.function.name for call in one.tool_calls}
            message["tool_calls"] = [_call(call) for call in one.tool_calls]
        if one.tool_call_id is not None:
            message["tool_call_id"] = one.tool_call_id
            if (name := one.name or called.get(one.tool_call_id)) is not None:
                message["name"] = name
        messages.append(message)
    if body.may_call:
        messages[0]["tools"] = [tool.model_dump(exclude_none=True) for tool in body.tools or ()]
    return tuple(messages)


def _call(call: ToolCall) -> dict[str, Any]:
    """A call with its arguments as an object; as they are where they were cut off, as an answer may have
    them, which comes back with the next request."""
    arguments: Any = call.function.arguments
    with contextlib.suppress(ValueError, RecursionError):
        arguments = json.loads(arguments)
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.function.name, "arguments": arguments},
    }


def characters_of_form(body: ChatBody) -> int:
    """Characters of declared tools and of calls, which become tokens like the messages."""
    calls = sum(len(call.function.arguments) for one in body.messages for call in one.tool_calls or ())
    return calls + sum(len(tool.model_dump_json()) for tool in body.tools or ())


def _refused(param: str, message: str) -> Refused:
    return Refused(400, message, code="invalid_value", param=param)
