"""POST /v1/completions and /v1/chat/completions: texts, whole or streamed."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fastapi import APIRouter, Request

from foreword.prefix import Prefix
from foreword.serving.api import schemas
from foreword.serving.api.pools import tokenizer_places
from foreword.serving.api.prompts import (
    characters_of,
    check_count,
    conversation,
    echoes_of,
    find_model,
    make_rows,
    prompt_ids,
    prompts_of,
    texts_of,
)
from foreword.serving.api.schemas import ERRORS
from foreword.serving.api.state import RequestIdentity, ServerState, identity_of, server_of
from foreword.serving.api.streaming import (
    CompletedText,
    Completions,
    check_places,
    plain,
    stream,
    unless_gone,
)
from foreword.serving.api.structured import grammar_of, has_form
from foreword.serving.engine.detokenizer import Echo, Spelling, TextDelta, TokenText
from foreword.serving.engine.protocol import FinishReason, Row
from foreword.serving.errors import Refused
from foreword.serving.requests import ChatBody, CompletionBody, Sampled
from foreword.serving.tool_calls import Piece, ToolCallReader

router = APIRouter(tags=["text"])
SomeBody = TypeVar("SomeBody", bound=Sampled)
RowMaker = Callable[[ServerState, RequestIdentity, Prefix | None, SomeBody], list[Row]]
DEFAULT_MAX_TOKENS = 16
"""New tokens of /v1/completions, as OpenAI's own; those of chat are a setting of the server."""


@router.post("/v1/completions", response_model=schemas.Completion, responses=ERRORS)
async def complete(request: Request, body: CompletionBody) -> Any:
    """Continue one or more prompts, each behind the model's prefix and in its template."""
    server, identity = server_of(request), identity_of(request)
    if body.max_tokens == 0 and not body.echo:
        raise Refused(
            400,
            "'max_tokens' is 0, which asks for no text but the prompt: set 'echo' with it.",
            param="max_tokens",
        )
    rows = await _rows(server, identity, body, _completion_rows)
    echoes: Sequence[Echo] = ()
    if body.echo:
        echoes = await server.pools.tokenizing.run(identity.account, lambda: echoes_of(server, rows, body))
    texts = Completions(server, identity, rows, body, echoes)
    head = _head("cmpl", body.model)

    def choice(index: int, part: CompletedText | TextDelta) -> schemas.CompletionChoice:
        return schemas.CompletionChoice(
            index=index,
            text=part.text,
            logprobs=None if body.logprobs is None else _completion_logprobs(part.logprobs),
            finish_reason=part.finish_reason,
        )

    if not body.stream:
        whole = await unless_gone(request, texts.whole())
        choices = [choice(index, text) for index, text in enumerate(whole)]
        return schemas.Completion(**head, choices=choices, usage=texts.usage)

    def chunks(delta: TextDelta) -> Sequence[dict[str, Any]]:
        return [plain(schemas.Completion(**head, choices=[choice(delta.row, delta)]))]

    def ending() -> Sequence[dict[str, Any]]:
        return [plain(schemas.Completion(**head, choices=[], usage=texts.usage))] if body.wants_usage else []

    return await stream(request, texts, (), chunks, ending)


@router.post("/v1/chat/completions", response_model=schemas.ChatCompletion, responses=ERRORS)
async def chat(request: Request, body: ChatBody) -> Any:
    """Answer a conversation, or the one message of a model that was trained without the chat template."""
    server, identity = server_of(request), identity_of(request)
    rows = await chat_rows(server, identity, body)
    texts = Completions(server, identity, rows, body)
    head = _head("chatcmpl", body.model)
    readers = [ToolCallReader(server.served.tool_form) if body.may_call else None for _ in rows]
    if not body.stream:
        whole = await unless_gone(request, texts.whole())
        choices = [
            schemas.ChatChoice(
                index=index,
                message=_message(text.text, reader),
                logprobs=chat_logprobs(text.logprobs) if body.logprobs else None,
                finish_reason=_reason(text.finish_reason, reader) or "length",
            )
            for index, (text, reader) in enumerate(zip(whole, readers, strict=True))
        ]
        return schemas.ChatCompletion(**head, choices=choices, usage=texts.usage)

    common = {**head, "object": "chat.completion.chunk", **({"usage": None} if body.wants_usage else {})}

    def chunk(row: int, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        choice = {"index": row, "delta": delta, "logprobs": None, "finish_reason": None, **more}
        return {**common, "choices": [choice]}

    def chunks(delta: TextDelta) -> Sequence[dict[str, Any]]:
        reader = readers[delta.row]
        final = delta.finish_reason is not None
        if reader is not None:
            deltas = [_delta(piece) for piece in reader.add(delta.text, final=final)]
        else:
            deltas = [{"content": delta.text}] if delta.text else []
        made = [chunk(delta.row, each) for each in deltas]
        if delta.logprobs:
            made = made or [chunk(delta.row, {} if reader else {"content": ""})]
            made[0]["choices"][0]["logprobs"] = (
                plain(chat_logprobs(delta.logprobs)) if body.logprobs else None
            )
        if final:
            made.append(chunk(delta.row, {}, finish_reason=_reason(delta.finish_reason, reader)))
        return made

    def ending() -> Sequence[dict[str, Any]]:
        return [{**common, "choices": [], "usage": plain(texts.usage)}] if body.wants_usage else []

    beginning = [chunk(row, {"role": "assistant", "content": ""}) for row in range(len(rows))]
    return await stream(request, texts, beginning, chunks, ending)


async def chat_rows(server: ServerState, identity: RequestIdentity, body: ChatBody) -> list[Row]:
    """The rows of a request for chat. Raises Refused, and whatever makes its prompt and grammar raises."""
    return await _rows(server, identity, body, _chat_rows)


def _message(text: str, reader: ToolCallReader | None) -> schemas.AnswerMessage:
    """The answer of a whole text; without text, of calls alone."""
    if reader is None:
        return schemas.AnswerMessage(content=text)
    content, calls = "", list[schemas.AnsweredCall]()
    for piece in reader.add(text, final=True):
        if piece.kind == "text":
            content += piece.text
        elif piece.kind == "call":
            function = schemas.AnsweredFunction(name=piece.text, arguments="")
            calls.append(schemas.AnsweredCall(id=piece.id, function=function))
        else:
            calls[piece.index].function.arguments += piece.text
    return schemas.AnswerMessage(content=content if content or not calls else None, tool_calls=calls or None)


def _delta(piece: Piece) -> dict[str, Any]:
    """A piece of a streamed answer."""
    if piece.kind == "text":
        return {"content": piece.text}
    if piece.kind == "arguments":
        return {"tool_calls": [{"index": piece.index, "function": {"arguments": piece.text}}]}
    function = {"name": piece.text, "arguments": ""}
    return {"tool_calls": [{"index": piece.index, "id": piece.id, "type": "function", "function": function}]}


def _reason(reason: FinishReason | None, reader: ToolCallReader | None) -> Any:
    """Why an answer ended: one that stopped behind a call waits for the tool."""
    return "tool_calls" if reason == "stop" and reader is not None and reader.calls else reason


def _head(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"{kind}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}


async def _rows(
    server: ServerState, identity: RequestIdentity, body: SomeBody, make: RowMaker[SomeBody]
) -> list[Row]:
    """The rows of a request: its prefix by one pool, its token ids by another."""
    pools, account, count = server.pools, identity.account, texts_of(body)
    check_count(server, count, body)
    check_places(server, identity, count)  # they are taken when the token ids are there
    prefix, joined = await pools.reads.run(account, lambda: find_model(server, identity.view, body.model))
    grammar = None
    if isinstance(body, ChatBody) and has_form(body):
        grammar = await pools.grammars.run(account, lambda: grammar_of(server, identity, prefix, body))
    places = tokenizer_places(characters_of(body))
    rows = await pools.tokenizing.run(account, lambda: make(server, identity, prefix, body), places=places)
    if grammar is None:
        return [dataclasses.replace(row, joined=joined) for row in rows] if joined else rows
    # Its own end token beside the row's: the only one that vLLM lets such a text end with.
    ends = rows[0].end_ids | {grammar.end_id}
    return [dataclasses.replace(row, joined=joined, grammar=grammar, end_ids=ends) for row in rows]


def _completion_rows(
    server: ServerState, identity: RequestIdentity, prefix: Prefix | None, body: CompletionBody
) -> list[Row]:
    prompts = [prompt_ids(server, prefix, prompt, body) for prompt in prompts_of(body)]
    longest = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    asked = {"logprobs": body.logprobs, "prompt_logprobs": body.logprobs if body.echo else None}
    return make_rows(server, identity, prefix, prompts, body, max_tokens=longest, **asked)


def _chat_rows(
    server: ServerState, identity: RequestIdentity, prefix: Prefix | None, body: ChatBody
) -> list[Row]:
    prompt = prompt_ids(server, prefix, conversation(server, prefix, body), body)
    longest = body.max_completion_tokens or body.max_tokens or server.configuration.default_max_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return make_rows(server, identity, prefix, [prompt], body, max_tokens=longest, logprobs=logprobs)


def _completion_logprobs(tokens: Sequence[TokenText]) -> schemas.CompletionLogprobs:
    return schemas.CompletionLogprobs(
        tokens=[token.spelling.key for token in tokens],
        token_logprobs=[token.logprob for token in tokens],
        top_logprobs=[None if token.logprob is None else _by_key(token) for token in tokens],
        text_offset=[token.offset for token in tokens],
    )


def _by_key(token: TokenText) -> dict[str, float]:
    """The likeliest tokens, and the chosen one; of two with the same text, the likelier."""
    named: dict[str, float] = {}
    for spelling, logprob in token.likeliest:
        named.setdefault(spelling.key, logprob)
    if named and token.logprob is not None:
        named.setdefault(token.spelling.key, token.logprob)
    return named


def chat_logprobs(tokens: Sequence[TokenText]) -> schemas.ChatLogprobs:
    """Log-probabilities of an answer's tokens."""

    def likely(spelling: Spelling, logprob: float) -> dict[str, Any]:
        return {"token": spelling.text, "bytes": list(spelling.bytes), "logprob": logprob}

    return schemas.ChatLogprobs(
        content=[
            schemas.ChatToken(
                **likely(token.spelling, token.logprob or 0.0),
                top_logprobs=[schemas.LikelyToken(**likely(*pair)) for pair in token.likeliest],
            )
            for token in tokens
        ]
    )
