"""Writing: the texts of one request, counted, timed and charged, in pieces or as a whole."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel
from starlette.requests import Request

from foreword.errors import ForewordError
from foreword.serving import logs
from foreword.serving.api.answering import EventStream, pieces, while_there
from foreword.serving.api.schemas import Usage
from foreword.serving.api.state import Server, Visitor
from foreword.serving.engine.detokenizer import Piece, TokenText
from foreword.serving.engine.protocol import Row
from foreword.serving.errors import Refused, body_of, refused


@dataclass
class Written:
    """One whole text."""

    text: str = ""
    logprobs: list[TokenText] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] = "length"

    def add(self, piece: Piece) -> None:
        """Append a piece."""
        self.text += piece.text
        self.logprobs += piece.logprobs
        if piece.finish_reason is not None:
            self.finish_reason = piece.finish_reason


class Writing:
    """The rows of one request on their way through the engine.

    Attributes:
        prompt_tokens: of every prompt once, however many texts follow it.
        completion_tokens: so far.
    """

    def __init__(self, server: Server, visitor: Visitor, rows: Sequence[Row], stop: Sequence[str]) -> None:
        self._server = server
        self._visitor = visitor
        self._rows = rows
        self._stop = stop
        distinct = {id(row.prompt_ids): len(row.prompt_ids) for row in rows}
        self.prompt_tokens = sum(distinct.values())
        self.completion_tokens = 0

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Pieces as they come; closing this frees the rows. Raises as `answering.pieces`."""
        server, begun, first = self._server, time.perf_counter(), True
        if server.rows + len(self._rows) > server.configuration.waiting_rows:
            raise Refused(
                503,
                f"{server.rows} texts are being written or wait for it already; try again in a moment",
                code="overloaded",
                headers={"retry-after": "2"},
            )
        server.rows += len(self._rows)
        server.metrics.rows.set(server.rows)
        self._charge("prompt", self.prompt_tokens)
        try:
            source = pieces(server.engine, server.served.tokenizer, self._rows, self._stop)
            async with contextlib.aclosing(source):
                async for piece in source:
                    if first:
                        server.metrics.first_token.observe(time.perf_counter() - begun)
                        first = False
                    self.completion_tokens += piece.tokens
                    yield piece
        finally:
            server.rows -= len(self._rows)
            server.metrics.rows.set(server.rows)
            self._charge("completion", self.completion_tokens)

    async def whole(self) -> list[Written]:
        """Every text, finished."""
        texts = [Written() for _ in self._rows]
        async with contextlib.aclosing(self.pieces()) as source:
            async for piece in source:
                texts[piece.row].add(piece)
        return texts

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            total_tokens=self.prompt_tokens + self.completion_tokens,
        )

    def _charge(self, kind: str, tokens: int) -> None:
        self._server.metrics.tokens.labels(kind).inc(tokens)
        self._server.limiter.spend(self._visitor.name, self._visitor.limits, tokens)


async def stream(
    request: Request,
    writing: Writing,
    beginning: Sequence[dict[str, Any]],
    chunks: Callable[[Piece], Sequence[dict[str, Any]]],
    ending: Callable[[], Sequence[dict[str, Any]]],
) -> EventStream:
    """A streamed answer; what goes wrong before the first piece is raised, and gets its own status.

    Args:
        beginning: events in front of the first piece.
        chunks: the events of a piece.
        ending: events after the last piece.

    Raises:
        ClientGone: before the first piece.
        WindowExceeded, EngineStopped: see `Engine.stream`.
    """
    source = writing.pieces()
    first = await while_there(request, anext(source))

    async def events() -> AsyncIterator[str]:
        async with contextlib.aclosing(source):
            for event in beginning:
                yield _event(event)
            for event in chunks(first):
                yield _event(event)
            try:
                async for piece in source:
                    for event in chunks(piece):
                        yield _event(event)
            except Exception as error:
                # The status is on its way already: all that is left is to say it in the stream.
                known = isinstance(error, ForewordError)
                answer = refused(error) if known else Refused(500, "the server failed to go on")  # type: ignore[arg-type]
                logs.failure("stream broken", error, request=request.state.request_id)
                yield _event(body_of(answer))
                return
            for event in ending():
                yield _event(event)
            yield "data: [DONE]\n\n"

    return EventStream(events())


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def plain(model: BaseModel) -> dict[str, Any]:
    """A part of an answer as plain data."""
    return model.model_dump(mode="json")
