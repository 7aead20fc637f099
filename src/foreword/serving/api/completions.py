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
from foreword.serving.engine.detokenizer import Spelling, TextDelta, TokenText
from foreword.serving.engine.protocol import Row
from foreword.serving.requests import ChatBody, CompletionBody, Sampled

router = APIRouter(tags=["text"])
SomeBody = TypeVar("SomeBody", bound=Sampled)
RowMaker = Callable[[ServerState, RequestIdentity, Prefix | None, SomeBody], list[Row]]
DEFAULT_MAX_TOKENS = 16
"""New tokens of /v1/completions, as OpenAI's own; those of chat are a setting of the server."""


@router.post("/v1/completions", response_model=schemas.Completion, responses=ERRORS)
async def complete(request: Request, body: CompletionBody) -> Any:
    """Continue one or more prompts, each behind the model's prefix and in its template."""
    server, identity = server_of(request), identity_of(request)
    rows = await _rows(server, identity, body, _completion_rows)
    texts = Completions(server, identity, rows, body)
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
    rows = await _rows(server, identity, body, _chat_rows)
    texts = Completions(server, identity, rows, body)
    head = _head("chatcmpl", body.model)
    if not body.stream:
        whole = await unless_gone(request, texts.whole())
        choices = [
            schemas.ChatChoice(
                index=index,
                message=schemas.AnswerMessage(content=text.text),
                logprobs=_chat_logprobs(text.logprobs) if body.logprobs else None,
                finish_reason=text.finish_reason,
            )
            for index, text in enumerate(whole)
        ]
        return schemas.ChatCompletion(**head, choices=choices, usage=texts.usage)

    common = {**head, "object": "chat.completion.chunk", **({"usage": None} if body.wants_usage else {})}

    def chunk(row: int, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        choice = {"index": row, "delta": delta, "logprobs": None, "finish_reason": None, **more}
        return {**common, "choices": [choice]}

    def chunks(delta: TextDelta) -> Sequence[dict[str, Any]]:
        made = []
        if delta.text or delta.logprobs:
            logprobs = plain(_chat_logprobs(delta.logprobs)) if body.logprobs else None
            made.append(chunk(delta.row, {"content": delta.text}, logprobs=logprobs))
        if delta.finish_reason:
            made.append(chunk(delta.row, {}, finish_reason=delta.finish_reason))
        return made

    def ending() -> Sequence[dict[str, Any]]:
        return [{**common, "choices": [], "usage": plain(texts.usage)}] if body.wants_usage else []

    beginning = [chunk(row, {"role": "assistant", "content": ""}) for row in range(len(rows))]
    return await stream(request, texts, beginning, chunks, ending)


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
    places = tokenizer_places(characters_of(body))
    rows = await pools.tokenizing.run(account, lambda: make(server, identity, prefix, body), places=places)
    return [dataclasses.replace(row, joined=joined) for row in rows] if joined else rows


def _completion_rows(
    server: ServerState, identity: RequestIdentity, prefix: Prefix | None, body: CompletionBody
) -> list[Row]:
    prompts = [prompt_ids(server, prefix, prompt, body) for prompt in prompts_of(body)]
    longest = body.max_tokens or DEFAULT_MAX_TOKENS
    return make_rows(server, identity, prefix, prompts, body, max_tokens=longest, logprobs=body.logprobs)


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
        top_logprobs=[_by_key(token) for token in tokens],
        text_offset=[token.offset for token in tokens],
    )


def _by_key(token: TokenText) -> dict[str, float]:
    """The likeliest tokens, and the chosen one; of two with the same text, the likelier."""
    named: dict[str, float] = {}
    for spelling, logprob in token.likeliest:
        named.setdefault(spelling.key, logprob)
    if named:
        named.setdefault(token.spelling.key, token.logprob)
    return named


def _chat_logprobs(tokens: Sequence[TokenText]) -> schemas.ChatLogprobs:
    def likely(spelling: Spelling, logprob: float) -> dict[str, Any]:
        return {"token": spelling.text, "bytes": list(spelling.bytes), "logprob": logprob}

    return schemas.ChatLogprobs(
        content=[
            schemas.ChatToken(
                **likely(token.spelling, token.logprob),
                top_logprobs=[schemas.LikelyToken(**likely(*pair)) for pair in token.likeliest],
            )
            for token in tokens
        ]
    )
