"""POST /v1/chat/completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from foreword.serving.api.prompts import conversation, find_model, make_rows, prompt_ids
from foreword.serving.api.schemas import (
    ERRORS,
    AnswerMessage,
    ChatBody,
    ChatChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatToken,
    LikelyToken,
)
from foreword.serving.api.state import RequestIdentity, ServerState, server_of, visitor_of
from foreword.serving.api.streaming import Completions, plain, stream, while_there
from foreword.serving.engine.detokenizer import UNFINISHED, TextDelta, TokenText
from foreword.serving.engine.protocol import Row

router = APIRouter(tags=["text"])


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=ERRORS)
async def chat(request: Request, body: ChatBody) -> Any:
    """Answer a conversation, or the one message of a model that was trained on single texts."""
    server, identity = server_of(request), visitor_of(request)
    rows = await run_in_threadpool(_rows, server, identity, body)
    writing = Completions(server, identity, rows, body.stops)
    head: dict[str, Any] = {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "created": int(time.time()),
        "model": body.model,
    }
    if not body.stream:
        texts = await while_there(request, writing.whole())
        choices = [
            ChatChoice(
                index=index,
                message=AnswerMessage(content=written.text),
                logprobs=_logprobs(written.logprobs) if body.logprobs else None,
                finish_reason=written.finish_reason,
            )
            for index, written in enumerate(texts)
        ]
        return ChatCompletion(**head, choices=choices, usage=writing.usage)

    wanted = body.stream_options is not None and bool(body.stream_options.include_usage)
    common = {**head, "object": "chat.completion.chunk", **({"usage": None} if wanted else {})}

    def chunk(row: int, delta: dict[str, Any], piece: TextDelta | None, reason: str | None) -> dict[str, Any]:
        told = plain(_logprobs(piece.logprobs)) if piece is not None and body.logprobs else None
        choice = {"index": row, "delta": delta, "logprobs": told, "finish_reason": reason}
        return {**common, "choices": [choice]}

    def chunks(piece: TextDelta) -> Sequence[dict[str, Any]]:
        told = (
            [chunk(piece.row, {"content": piece.text}, piece, None)] if piece.text or piece.logprobs else []
        )
        last = [chunk(piece.row, {}, None, piece.finish_reason)] if piece.finish_reason else []
        return told + last

    def ending() -> Sequence[dict[str, Any]]:
        return [{**common, "choices": [], "usage": plain(writing.usage)}] if wanted else []

    beginning = [chunk(row, {"role": "assistant", "content": ""}, None, None) for row in range(len(rows))]
    return await stream(request, writing, beginning, chunks, ending)


def _rows(server: ServerState, identity: RequestIdentity, body: ChatBody) -> list[Row]:
    model = find_model(server, identity.view, body.model)
    raw = bool(body.raw)
    source = conversation(server, model, body.messages, raw=raw)
    prompt = prompt_ids(server, model, source, chat=True, raw=raw, param="messages")
    return make_rows(
        server,
        identity.caller,
        model,
        [prompt],
        body,
        max_tokens=body.max_completion_tokens or body.max_tokens or server.configuration.default_max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )


def _logprobs(tokens: Sequence[TokenText]) -> ChatLogprobs:
    return ChatLogprobs(
        content=[
            ChatToken(
                token=token.text,
                bytes=_bytes(token.text),
                logprob=token.logprob,
                top_logprobs=[
                    LikelyToken(token=text, bytes=_bytes(text), logprob=logprob)
                    for text, logprob in token.likeliest
                ],
            )
            for token in tokens
        ]
    )


def _bytes(text: str) -> list[int] | None:
    """UTF-8 of a token; None for one that is a part of a character."""
    return None if UNFINISHED in text else list(text.encode())
