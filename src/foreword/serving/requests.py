"""Schemas of requests: every field that is understood, with its bounds, and what is said of any other.

A field that is not understood is refused by name, never ignored.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Annotated, Any, Literal

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, model_validator

from foreword.serving.errors import Refused, shown

LONGEST_NAME = 300
"""Characters of a model's name."""
MOST_FIELDS = 100
"""Of an object; none has half as many that are known."""
Text = Annotated[str, Field(max_length=1 << 23)]
StopText = Annotated[str, Field(min_length=1, max_length=256)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
# The first fault says enough: a million of them would take a gigabyte.
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=1 << 20, fail_fast=True)]


class Body(BaseModel):
    """Strict: no unknown field, no NaN, no number in quotes."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

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


class ResponseFormat(Body):
    """The form of an answer: text is the only one."""

    type: Literal["text"]


class Sampled(Body):
    """What completions and chat have in common."""

    model: Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
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
    # Accepted because clients send them, and without effect at the only values that are accepted.
    user: Annotated[str, Field(max_length=512)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop texts, none or more."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with the number of tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Sampled:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is given, but stream is not true")
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
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: Annotated[str, Field(max_length=0)] | None = None


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class ChatMessage(Body):
    """One message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=256)]
    name: Annotated[str, Field(max_length=64)] | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatBody(Sampled):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=2048)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    # As above.
    response_format: ResponseFormat | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: Annotated[str, Field(max_length=512)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=512)] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None

    @model_validator(mode="after")
    def _belongs_together(self) -> ChatBody:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs is given, but logprobs is not true")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens are both given; give one")
        return self


def refuse_fields_beside(form: Iterable[str], known: Collection[str]) -> None:
    """Refuse a form with a field that has no meaning here, as bodies in JSON are. Raises Refused: 400."""
    for field in form:
        if field not in known:
            param = field.partition("[")[0]  # a field with parts comes as `expires_after[seconds]`
            raise _unknown_field(field, param if param.isidentifier() else None)


def _unknown_field(where: str, param: str | None) -> Refused:
    return Refused(
        400, f"the field {shown(where)} is not known here; leave it out", code="unknown_field", param=param
    )


def refusal_of(error: RequestValidationError) -> Refused:
    """What pydantic found wrong with a request first, in our words."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
    kind = first["type"]
    if kind == "json_invalid":
        detail = first.get("ctx", {}).get("error", "")
        return Refused(400, f"the body is not JSON: {detail} at byte {first['loc'][-1]}", code="invalid_json")
    # Types of a union stand in the path too; a caller looks for the field.
    param = ".".join(part for part in path if part.isidentifier() or part.isdigit()) or None
    where = param or "the body"
    if kind == "extra_forbidden":
        return _unknown_field(where, param)
    if kind == "missing":
        return Refused(400, f"{where} is missing", code="missing_field", param=param)
    return Refused(400, f"{where}: {first['msg']}", code="invalid_value", param=param)
