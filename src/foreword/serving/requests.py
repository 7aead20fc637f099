"""Schemas of requests: every field that is understood, with its bounds.

A field that asks for something and is not understood is refused by name, never ignored. One that is null or
empty asks for nothing, whatever its name: clients send every field that they know, and send an answer back as
they got it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict

LONGEST_NAME = 300
"""Characters of a model's name, of which several may be joined."""
MOST_JOINED = 10
"""Prefixes that one request may join."""
JOINS = "+"
"""Between their names, which can't have it."""
LONGEST_MODEL = (LONGEST_NAME + 1) * MOST_JOINED
"""Characters of a model's name in a request."""
MOST_FIELDS = 100
"""Of an object; none has half as many that are known."""
Text = Annotated[str, Field(max_length=1 << 23)]
MOST_STOPS = 4
"""As many as OpenAI's API takes."""
MOST_TOOLS = 128
"""As many as OpenAI's API takes."""
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
StopText = Annotated[str, Field(min_length=1, max_length=256)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
# The first fault says enough: a million of them would take a gigabyte.
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=1 << 20, fail_fast=True)]


NOTHING: tuple[Any, ...] = (None, "", [], {})
"""What any field that is not understood may hold."""


def _describe(schema: JsonDict, kind: type[Body]) -> None:
    """Say in the OpenAPI document what is accepted without effect, beside the fields."""
    schema["additionalProperties"] = {"enum": [*NOTHING]}
    properties: Any = schema.setdefault("properties", {})
    for name, values in kind.without_effect.items():
        properties[name] = {"enum": [*values, *NOTHING], "description": "Without effect at these values."}


class Body(BaseModel):
    """Strict: no NaN, no number in quotes, no unknown field that asks for something.

    Attributes:
        without_effect: values of fields that are not understood which ask for nothing beyond what is done.
        may_be_empty: fields that are understood, and ask for nothing where they are empty, of any type.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, json_schema_extra=_describe)  # type: ignore[arg-type]
    without_effect: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    may_be_empty: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _leave_out_nothing(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        fields, known = cls.model_fields, cls.without_effect
        # `1 in (True,)` holds in Python; a number is no truth value here.
        return {
            name: value
            for name, value in given.items()
            if (name in fields and name not in cls.may_be_empty)
            or not any(type(value) is type(one) and value == one for one in (*NOTHING, *known.get(name, ())))
        }

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, data: Any) -> Any:
        if isinstance(data, dict) and len(data) > MOST_FIELDS:  # each would be told of as unknown
            raise ValueError(f"{len(data)} fields, more than there are; leave out those that are not known")
        return data


class StreamOptions(Body):
    """What a streamed answer is to have beside the text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Sampled(Body):
    """What completions and chat have in common."""

    model: Annotated[str, Field(min_length=1, max_length=LONGEST_MODEL)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: (
        Annotated[str, Field(max_length=256)] | Annotated[list[StopText], Field(max_length=MOST_STOPS)] | None
    ) = None
    seed: Seed | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    min_tokens: Annotated[
        int | None, Field(ge=0, le=10_000_000, description="New tokens before the text may end itself.")
    ] = None
    raw: Annotated[
        bool | None, Field(description="Take the text as it is, without the prefix's own template.")
    ] = None
    user: Annotated[str | None, Field(max_length=512, description="Without effect.")] = None

    without_effect = {
        "presence_penalty": (0, 0.0),
        "frequency_penalty": (0, 0.0),
        "service_tier": ("auto", "default"),
        "store": (False,),
    }

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop texts, none or more."""
        if not self.stop:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with the number of tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Sampled:
        if self.wants_usage and not self.stream:
            raise ValueError("The 'stream_options' parameter is only allowed when 'stream' is enabled.")
        return self


class CompletionBody(Sampled):
    """POST /v1/completions."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=128)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, max_length=128)]
    )
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: Annotated[bool | None, Field(description="Begin the text with the prompt.")] = None
    max_tokens: Annotated[int, Field(ge=0, le=10_000_000)] | None = None

    without_effect = {**Sampled.without_effect, "best_of": (1,)}


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class CalledFunction(Body):
    """What an assistant called, and with what."""

    name: Annotated[str, Field(max_length=LONGEST_NAME)]
    arguments: Text


class ToolCall(Body):
    """A call of a tool, as an answer has it."""

    id: Annotated[str, Field(max_length=LONGEST_NAME)]
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class ChatMessage(Body):
    """One message."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=256)]
    name: Annotated[str, Field(max_length=64)] | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MOST_TOOLS)] | None = None
    tool_call_id: Annotated[str, Field(max_length=LONGEST_NAME)] | None = None

    may_be_empty = frozenset({"tool_calls", "tool_call_id"})

    @model_validator(mode="before")
    @classmethod
    def _calls_alone(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("role") != "assistant":
            return given
        left_out = None if given.get("tool_calls") else "missing"
        return {**given, "content": ""} if given.get("content", left_out) in (None, []) else given

    @model_validator(mode="after")
    def _belong_to_the_role(self) -> ChatMessage:
        if self.tool_calls and self.role != "assistant":
            raise ValueError(
                f"Only the assistant's messages have 'tool_calls'; this one is the {self.role}'s."
            )
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError(
                "A message with role 'tool', and no other, has 'tool_call_id': the call it answers."
            )
        return self

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class JsonSchema(Body):
    """A schema for the whole answer."""

    name: FunctionName
    description: Text | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: Annotated[
        bool | None, Field(description="Without effect: an answer always follows its schema.")
    ] = None


class ResponseFormat(Body):
    """What the answer has to be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("'json_schema' goes with the type 'json_schema', and only with that.")
        return self


class Function(Body):
    """A function that an answer may call."""

    name: FunctionName
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: Annotated[
        bool | None, Field(description="Without effect: arguments always follow their schema.")
    ] = None


class Tool(Body):
    """A tool that an answer may call."""

    type: Literal["function"]
    function: Function


class ChosenFunction(Body):
    """The name of a function."""

    name: FunctionName


class ChosenTool(Body):
    """The tool that the answer has to call."""

    type: Literal["function"]
    function: ChosenFunction


class ChatBody(Sampled):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=2048)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    metadata: Annotated[dict[str, str] | None, Field(max_length=16, description="Without effect.")] = None
    safety_identifier: Annotated[str | None, Field(max_length=512, description="Without effect.")] = None
    prompt_cache_key: Annotated[str | None, Field(max_length=512, description="Without effect.")] = None

    may_be_empty = frozenset({"response_format", "tools", "tool_choice", "parallel_tool_calls"})
    without_effect = {
        **Sampled.without_effect,
        "modalities": (["text"],),
        "function_call": ("none", "auto"),
        "reasoning_effort": ("none",),
    }

    @model_validator(mode="after")
    def _belongs_together(self) -> ChatBody:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs is given, but logprobs is not true")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens are both given; give one")
        return self

    @property
    def may_call(self) -> bool:
        """Whether the answer may call a tool."""
        return bool(self.tools) and self.tool_choice != "none"

    @property
    def must_call(self) -> bool:
        """Whether the answer has to call one."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, ChosenTool)

    @property
    def wants_json(self) -> bool:
        """Whether the answer has to be JSON."""
        return self.response_format is not None and self.response_format.type != "text"
