"""The body of POST /v1/responses, and the request for chat that asks for the same.

A response is an answer of chat in other words, so it is one chat request from here on: what it may ask for,
its limits and its tokens are those of chat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from foreword.serving.errors import Refused
from foreword.serving.requests import (
    LONGEST_MODEL,
    LONGEST_NAME,
    MOST_TOOLS,
    Body,
    CalledFunction,
    ChatBody,
    ChatMessage,
    ChosenFunction,
    ChosenTool,
    Function,
    FunctionName,
    JsonSchema,
    ResponseFormat,
    StreamOptions,
    Text,
    Tool,
    ToolCall,
)

Identifier = Annotated[str, Field(max_length=LONGEST_NAME)]
MOST_ITEMS = 2047
"""As many messages as chat takes, but for the instructions."""

PARAMS = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
}
"""Fields of chat by another name."""


class InputPart(Body):
    """A part of a message: text that was sent, or that a response had."""

    type: Literal["input_text", "output_text"]
    text: Text
    logprobs: Annotated[list[Any] | None, Field(description="Of a response's text; without effect.")] = None
    parsed: Annotated[Any, Field(description="What a client read in the text; without effect.")] = None


Parts = Annotated[list[InputPart], Field(min_length=1, max_length=256)]


class InputItem(Body):
    """A message, a call of a function, or what the function gave; as sent, or as a response had it."""

    type: Literal["message", "function_call", "function_call_output"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Text | Parts | None = None
    call_id: Identifier | None = None
    name: Identifier | None = None
    arguments: Text | None = None
    output: Text | Parts | None = None
    id: Annotated[Identifier | None, Field(description="Without effect.")] = None
    status: Annotated[
        Literal["in_progress", "completed", "incomplete"] | None, Field(description="Without effect.")
    ] = None
    parsed_arguments: Annotated[
        Any, Field(description="What a client read in the arguments; without effect.")
    ] = None

    @model_validator(mode="after")
    def _is_whole(self) -> InputItem:
        needed: dict[str, Sequence[str]] = {
            "message": ("role", "content"),
            "function_call": ("call_id", "name", "arguments"),
            "function_call_output": ("call_id", "output"),
        }
        for name in needed[self.type]:
            if getattr(self, name) is None and not (name == "content" and self.role == "assistant"):
                raise ValueError(f"Missing required parameter: '{name}' of an item of type '{self.type}'.")
        others = {name for names in needed.values() for name in names} - set(needed[self.type])
        for name in sorted(others):
            if getattr(self, name) is not None:
                raise ValueError(f"An item of type '{self.type}' has no '{name}'; leave it out.")
        return self


class TextFormat(Body):
    """What the text has to be."""

    type: Literal["text", "json_object", "json_schema"]
    name: FunctionName | None = None
    description: Text | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: Annotated[bool | None, Field(description="Without effect: a text always follows its schema.")] = (
        None
    )

    @model_validator(mode="after")
    def _has_its_schema(self) -> TextFormat:
        if self.type == "json_schema" and (self.name is None or self.schema_ is None):
            raise ValueError("A format of type 'json_schema' needs 'name' and 'schema'.")
        if self.type != "json_schema" and (self.name or self.schema_ is not None):
            raise ValueError("'name' and 'schema' go with the type 'json_schema', and only with that.")
        return self


class TextOptions(Body):
    """Of `text`."""

    format: TextFormat | None = None

    without_effect: ClassVar[Mapping[str, tuple[Any, ...]]] = {"verbosity": ("medium",)}


class ResponseTool(Body):
    """A function that the response may call."""

    # In front of what `Function` has, too: of another kind of tool the kind is refused, not a missing name.
    type: Literal["function"]
    name: FunctionName
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: Annotated[
        bool | None, Field(description="Without effect: arguments always follow their schema.")
    ] = None


class ChosenResponseTool(Body):
    """The function that the response has to call."""

    type: Literal["function"]
    name: FunctionName


class Reasoning(Body):
    """Nothing but what asks for none."""

    without_effect: ClassVar[Mapping[str, tuple[Any, ...]]] = {"effort": ("none",)}


class ResponseBody(Body):
    """POST /v1/responses."""

    model: Annotated[str, Field(min_length=1, max_length=LONGEST_MODEL)]
    input: Text | Annotated[list[InputItem], Field(min_length=1, max_length=MOST_ITEMS)]
    instructions: Text | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: Annotated[list[Literal["message.output_text.logprobs"]], Field(max_length=8)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    text: TextOptions | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenResponseTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    store: bool | None = None
    previous_response_id: Identifier | None = None
    metadata: Annotated[dict[str, str] | None, Field(max_length=16, description="Without effect.")] = None
    user: Annotated[str | None, Field(max_length=512, description="Without effect.")] = None
    safety_identifier: Annotated[str | None, Field(max_length=512, description="Without effect.")] = None
    prompt_cache_key: Annotated[str | None, Field(max_length=512, description="Without effect.")] = None

    may_be_empty: ClassVar[frozenset[str]] = frozenset(
        {"tools", "tool_choice", "parallel_tool_calls", "text", "include", "reasoning"}
    )
    without_effect: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "background": (False,),
        "service_tier": ("auto", "default"),
        "truncation": ("disabled",),
    }


def chat_body(body: ResponseBody) -> ChatBody:
    """The request for chat that asks for the same.

    Raises:
        Refused: 400, what needs responses that are stored.
    """
    for param, given in (("store", body.store), ("previous_response_id", body.previous_response_id)):
        if given:
            raise Refused(
                400,
                f"Unsupported parameter: '{param}': this server stores no responses. Leave it out, and send "
                "the conversation so far as 'input'.",
                code="unsupported_parameter",
                param=param,
            )
    asked = body.tool_choice
    choice: Any = asked
    if isinstance(asked, ChosenResponseTool):
        choice = ChosenTool(type="function", function=ChosenFunction(name=asked.name))
    more: dict[str, Any] = {}
    if body.include or body.top_logprobs:
        more = {"logprobs": True, "top_logprobs": body.top_logprobs}
    return ChatBody(
        model=body.model,
        messages=_messages(body),
        max_completion_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        stream=body.stream,
        response_format=_format(body),
        tools=[_tool(tool) for tool in body.tools] if body.tools else None,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls,
        **more,
    )


def say_of_response(error: Refused) -> None:
    """Let a refusal of the chat request be about the field that the caller knows."""
    name = (error.param or "").partition(".")[0].partition("[")[0]
    if (own := PARAMS.get(name)) is not None:
        error.message = error.message.replace(f"'{name}'", f"'{own}'")
        error.param = own


def _messages(body: ResponseBody) -> list[ChatMessage]:
    messages = []
    if body.instructions:
        messages.append(ChatMessage(role="system", content=body.instructions))
    if isinstance(body.input, str):
        return [*messages, ChatMessage(role="user", content=body.input)]
    for item in body.input:
        if item.type == "function_call_output":
            messages.append(ChatMessage(role="tool", content=_text(item.output), tool_call_id=item.call_id))
        elif item.type == "message":
            messages.append(ChatMessage(role=item.role or "user", content=_text(item.content)))
        else:
            called = CalledFunction(name=item.name or "", arguments=item.arguments or "")
            call = ToolCall(id=item.call_id or "", function=called)
            last = messages[-1] if messages else None
            if last is None or last.role != "assistant":  # a call belongs to the text in front of it, if any
                messages.append(last := ChatMessage(role="assistant", content=""))
            last.tool_calls = [*(last.tool_calls or ()), call]
    return messages


def _text(content: str | Sequence[InputPart] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text for part in content)


def _format(body: ResponseBody) -> ResponseFormat | None:
    given = body.text.format if body.text else None
    if given is None:
        return None
    schema = None
    if given.type == "json_schema":
        named = {"name": given.name, "description": given.description, "schema": given.schema_}
        schema = JsonSchema.model_validate(named)
    return ResponseFormat(type=given.type, json_schema=schema)


def _tool(tool: ResponseTool) -> Tool:
    function = Function(name=tool.name, description=tool.description, parameters=tool.parameters)
    return Tool(type="function", function=function)
