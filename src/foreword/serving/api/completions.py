"""POST /v1/completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from foreword.serving.api.prompts import find_model, make_rows, prompt_ids
from foreword.serving.api.schemas import (
    ERRORS,
    Completion,
    CompletionBody,
    CompletionChoice,
    CompletionLogprobs,
)
from foreword.serving.api.state import RequestIdentity, ServerState, server_of, visitor_of
from foreword.serving.api.streaming import Completions, plain, stream, while_there
from foreword.serving.engine.detokenizer import TextDelta, TokenText
from foreword.serving.engine.protocol import Row

router = APIRouter(tags=["text"])
DEFAULT_MAX_TOKENS = 16
"""OpenAI's own."""


@router.post("/v1/completions", response_model=Completion, responses=ERRORS)
async def complete(request: Request, body: CompletionBody) -> Any:
    """Continue one or more prompts, each behind the model's prefix and in its template."""
    server, identity = server_of(request), visitor_of(request)
    rows = await run_in_threadpool(_rows, server, identity, body)
    writing = Completions(server, identity, rows, body.stops)
    head: dict[str, Any] = {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "created": int(time.time()),
        "model": body.model,
    }
    asked = body.logprobs is not None
    if not body.stream:
        texts = await while_there(request, writing.whole())
        choices = [
            CompletionChoice(
                index=index,
                text=written.text,
                logprobs=_logprobs(written.logprobs, 0) if asked else None,
                finish_reason=written.finish_reason,
            )
            for index, written in enumerate(texts)
        ]
        return Completion(**head, choices=choices, usage=writing.usage)

    offsets = [0] * len(rows)

    def chunks(piece: TextDelta) -> Sequence[dict[str, Any]]:
        choice = CompletionChoice(
            index=piece.row,
            text=piece.text,
            logprobs=_logprobs(piece.logprobs, offsets[piece.row]) if asked else None,
            finish_reason=piece.finish_reason,
        )
        offsets[piece.row] += len(piece.text)
        return [plain(Completion(**head, choices=[choice]))]

    def ending() -> Sequence[dict[str, Any]]:
        wanted = body.stream_options is not None and body.stream_options.include_usage
        return [plain(Completion(**head, choices=[], usage=writing.usage))] if wanted else []

    return await stream(request, writing, (), chunks, ending)


def _rows(server: ServerState, identity: RequestIdentity, body: CompletionBody) -> list[Row]:
    model = find_model(server, identity.view, body.model)
    given: Any = body.prompt
    several = isinstance(given, list) and not isinstance(given[0], int)
    prompts = [
        prompt_ids(server, model, prompt, chat=False, raw=bool(body.raw), param="prompt")
        for prompt in (given if several else [given])
    ]
    return make_rows(
        server,
        identity.caller,
        model,
        prompts,
        body,
        max_tokens=body.max_tokens or DEFAULT_MAX_TOKENS,
        logprobs=body.logprobs,
    )


def _logprobs(tokens: Sequence[TokenText], offset: int) -> CompletionLogprobs:
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return CompletionLogprobs(
        tokens=[token.text for token in tokens],
        token_logprobs=[token.logprob for token in tokens],
        top_logprobs=[dict(token.likeliest) for token in tokens],
        text_offset=offsets,
    )
