"""Schemas of answers in OpenAI's form; those of requests are in `foreword.serving.requests`."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every answer with a status from 400."""

    error: ErrorDetail


class Usage(BaseModel):
    """Tokens; virtual ones are not among them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionLogprobs(BaseModel):
    """Log-probabilities of a completion's tokens."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One text."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class Completion(BaseModel):
    """The answer of /v1/completions, whole or a piece of a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class LikelyToken(BaseModel):
    """A token that was likely in its place."""

    token: str
    bytes: list[int] | None
    logprob: float


class ChatToken(LikelyToken):
    """A token of an answer."""

    top_logprobs: list[LikelyToken]


class ChatLogprobs(BaseModel):
    """Log-probabilities of an answer's tokens."""

    content: list[ChatToken]
    refusal: None = None


class AnsweredFunction(BaseModel):
    """A function that is to be called, with its arguments as JSON."""

    name: str
    arguments: str


class AnsweredCall(BaseModel):
    """A call of a tool."""

    id: str
    type: Literal["function"] = "function"
    function: AnsweredFunction


class AnswerMessage(BaseModel):
    """The assistant's answer; without calls, it has no such field."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: Annotated[list[AnsweredCall] | None, Field(exclude_if=lambda calls: calls is None)] = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(BaseModel):
    """The answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class InputDetails(BaseModel):
    """Of the tokens that were read."""

    cached_tokens: int = 0


class OutputDetails(BaseModel):
    """Of the new tokens."""

    reasoning_tokens: int = 0


class ResponseUsage(BaseModel):
    """Tokens of a response; virtual ones are not among them."""

    input_tokens: int
    input_tokens_details: InputDetails = InputDetails()
    output_tokens: int
    output_tokens_details: OutputDetails = OutputDetails()
    total_tokens: int


class ResponseError(BaseModel):
    """Why a response failed."""

    code: str
    message: str


ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed"]


class Response(BaseModel):
    """The answer of /v1/responses, whole or in an event; `output` has messages and calls of functions."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: ResponseStatus
    background: Literal[False] = False
    error: ResponseError | None = None
    incomplete_details: dict[str, str] | None = None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[dict[str, Any]] = []
    parallel_tool_calls: bool
    previous_response_id: None = None
    reasoning: dict[str, None] = {"effort": None, "summary": None}
    store: Literal[False] = False
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None
    metadata: dict[str, str]


class ModelFacts(BaseModel):
    """What is known of a prefix beside its name."""

    digest: str
    length: int
    base: str
    created: str
    labels: list[str]
    public: bool


class ModelAnswer(BaseModel):
    """A model: the base, or a prefix."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    foreword: ModelFacts | None = None


class ModelList(BaseModel):
    """Models; `next` is the `after` of the page behind this one."""

    object: Literal["list"] = "list"
    data: list[ModelAnswer]
    has_more: bool = False
    next: str | None = None


class Deleted(BaseModel):
    """What is gone."""

    id: str
    object: str
    deleted: Literal[True] = True


class FileAnswer(BaseModel):
    """A file: examples, a document, conversations about one, or the report of a job."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: Literal["fine-tune", "user_data", "fine-tune-results"]
    status: Literal["processed"] = "processed"
    status_details: str | None = None
    examples: int


class FileList(BaseModel):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[FileAnswer]
    first_id: str | None
    last_id: str | None
    has_more: bool


class JobError(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    param: str | None = None


class JobAnswer(BaseModel):
    """A fine-tuning job."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    error: JobError | None
    fine_tuned_model: str | None
    finished_at: int | None
    hyperparameters: dict[str, Any]
    method: dict[str, Any]
    model: str
    organization_id: str
    result_files: list[str] = []
    seed: int
    status: Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
    trained_tokens: int | None
    training_file: str
    validation_file: str | None
    metadata: dict[str, str] | None


class JobList(BaseModel):
    """A page of jobs, newest first."""

    object: Literal["list"] = "list"
    data: list[JobAnswer]
    has_more: bool


class JobEvent(BaseModel):
    """Something that happened to a job."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any] | None


class JobEvents(BaseModel):
    """A page of events, newest first."""

    object: Literal["list"] = "list"
    data: list[JobEvent]
    has_more: bool


class JobCheckpoint(BaseModel):
    """The step of a finished job whose keys and values became the prefix."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, float]
    step_number: int


class JobCheckpoints(BaseModel):
    """The checkpoints of a job that can be used as models."""

    object: Literal["list"] = "list"
    data: list[JobCheckpoint]
    first_id: str | None
    last_id: str | None
    has_more: Literal[False] = False


class PrefixAnswer(BaseModel):
    """All that the store says of a version and its prefix."""

    id: str
    object: Literal["prefix"] = "prefix"
    owner: str
    name: str
    number: int
    digest: str
    size: int
    created: str
    labels: list[str]
    public: bool
    base: str
    length: int
    dtype: str
    facts: dict[str, Any]
    versions: list[int]
    all_labels: dict[str, int]
    shared_with: list[str]


class Health(BaseModel):
    """Whether the server lives."""

    status: Literal["ok", "draining"]


def seconds_of(moment: str) -> int:
    """A time of the store's database as a Unix time stamp; 0 for one that is none, which an earlier release
    could import: a list must not fail over one entry."""
    try:
        return int(datetime.datetime.fromisoformat(moment).timestamp())
    except (ValueError, OverflowError):
        return 0


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "What is wrong with the request."},
    "5XX": {"model": ErrorBody, "description": "The server can't answer now."},
}
"""For the OpenAPI document of every route."""
BINARY: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": {}}}, **ERRORS}
"""For that of a route that answers with a file."""
