"""The texts of one request: rows through the engine, counted and charged, whole or as a stream of events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from foreword.errors import ForewordError
from foreword.serving import logs
from foreword.serving.api.schemas import Usage
from foreword.serving.api.state import RequestIdentity, ServerState
from foreword.serving.engine.detokenizer import Echo, RowText, TextDelta, TokenText
from foreword.serving.engine.protocol import Engine, Row, Token
from foreword.serving.errors import Refused, body_of, refused
from foreword.serving.requests import Sampled

T = TypeVar("T")


class ClientGone(Exception):
    """Nobody is there any more to take the answer."""


@dataclass
class CompletedText:
    """One whole text."""

    text: str = ""
    logprobs: list[TokenText] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] = "length"

    def add(self, delta: TextDelta) -> None:
        """Append what has come."""
        self.text += delta.text
        self.logprobs += delta.logprobs
        if delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason


class Completions:
    """The rows of one request on their way through the engine.

    Attributes:
        prompt_tokens: of every prompt once, however many texts follow it.
        completion_tokens: so far.
    """

    def __init__(
        self,
        server: ServerState,
        identity: RequestIdentity,
        rows: Sequence[Row],
        body: Sampled,
        echoes: Sequence[Echo] = (),
    ) -> None:
        """
        Args:
            echoes: of each row, where its text is to begin with its prompt.
        """
        self._server = server
        self._identity = identity
        self._rows = rows
        self._stop = body.stops
        self._echoes = echoes
        self.prompt_tokens = sum(len(row.prompt_ids) for row in rows[:: body.n or 1])
        self.completion_tokens = 0
        self._most_tokens = self.prompt_tokens + sum(map(self._room, rows))

    async def deltas(self) -> AsyncGenerator[TextDelta, None]:
        """Pieces of text as they come; closing this frees the rows. Raises as `text_deltas`."""
        server, start_time, first = self._server, time.perf_counter(), True
        identity = self._identity
        self._take_places()
        server.metrics.rows.set(server.rows)
        try:
            # All that it may need: many at once would pass the limit before their tokens are counted.
            server.limiter.reserve(identity.name, identity.limits, self._most_tokens, read=self.prompt_tokens)
        except Refused:
            self._give_places_back()
            raise
        self._count("prompt", self.prompt_tokens)
        try:
            source = text_deltas(server.engine, server.served.tokenizer, self._rows, self._stop, self._echoes)
            async with contextlib.aclosing(source):
                async for delta in source:
                    if first:
                        server.metrics.first_token.observe(time.perf_counter() - start_time)
                        first = False
                    self.completion_tokens += delta.tokens
                    yield delta
        finally:
            self._give_places_back()
            self._count("completion", self.completion_tokens)
            unused = self._most_tokens - self.prompt_tokens - self.completion_tokens
            server.limiter.give_back(identity.name, identity.limits, unused)

    async def whole(self) -> list[CompletedText]:
        """Every text, finished."""
        texts = [CompletedText() for _ in self._rows]
        async with contextlib.aclosing(self.deltas()) as source:
            async for delta in source:
                texts[delta.row].add(delta)
        return texts

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            total_tokens=self.prompt_tokens + self.completion_tokens,
        )

    def _room(self, row: Row) -> int:
        """New tokens that a row may come to have."""
        limit = self._server.served.text_limit(row.prefix_length)
        most = row.sampling.max_tokens
        return most if limit is None else min(most, limit - len(row.prompt_ids))

    def _take_places(self) -> None:
        identity, count = self._identity, len(self._rows)
        try:
            check_places(self._server, identity, count)
        except Refused as error:  # there were some before the token ids were made
            self._server.limiter.charge_refused(identity.name, identity.limits, self.prompt_tokens)
            error.counted = True
            raise
        self._server.pools.rows.take(identity.account, count)

    def _give_places_back(self) -> None:
        server = self._server
        server.pools.rows.give_back(self._identity.account, len(self._rows))
        server.metrics.rows.set(server.rows)

    def _count(self, kind: str, tokens: int) -> None:
        used = {"requests": 1, "prompt_tokens": tokens} if kind == "prompt" else {"completion_tokens": tokens}
        self._server.usage.add(self._identity.caller.owner, **used)
        self._server.metrics.tokens.labels(kind).inc(tokens)


def check_places(server: ServerState, identity: RequestIdentity, count: int) -> None:
    """Refuse so many texts where there are no places for them now. Raises Refused: 429, 503."""
    places, account = server.pools.rows, identity.account
    if places.may_take(account, count):
        return
    later = {"retry-after": "2"}
    if places.free_for(count):
        raise Refused(
            429,
            f"{places.held_by(account)} texts of yours are written or wait for it, and {count} more "
            "would leave too few places to others; send fewer at once",
            code="too_many_at_once",
            headers=later,
        )
    raise Refused(
        503,
        f"{places.held} texts are being written or wait for it already; try again in a moment",
        code="overloaded",
        headers=later,
    )


async def text_deltas(
    engine: Engine, tokenizer: Any, rows: Sequence[Row], stop: Sequence[str], echoes: Sequence[Echo] = ()
) -> AsyncGenerator[TextDelta, None]:
    """Pieces of all rows, in the order in which they come, until each row has its last.

    Closing this frees every row.

    Raises:
        WindowExceeded, EngineStopped: see `Engine.stream`; the other rows are freed.
    """
    # Unbounded, and still small: a row has no more pieces than tokens. A slow reader must not hold
    # up a batch in which other requests have rows.
    queue: asyncio.Queue[TextDelta | BaseException] = asyncio.Queue()
    given: Sequence[Echo | None] = echoes or [None] * len(rows)
    texts = [
        RowText(tokenizer, index, row.end_ids, stop, echo)
        for index, (row, echo) in enumerate(zip(rows, given, strict=True))
    ]
    tasks = [
        asyncio.create_task(_read_row(engine, row, text, queue))
        for row, text in zip(rows, texts, strict=True)
    ]
    unfinished = len(rows)
    try:
        while unfinished:
            delta = await queue.get()
            if isinstance(delta, BaseException):
                raise delta
            unfinished -= delta.finish_reason is not None
            yield delta
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _read_row(
    engine: Engine, row: Row, text: RowText, queue: asyncio.Queue[TextDelta | BaseException]
) -> None:
    try:
        stream = cast("AsyncGenerator[Token, None]", engine.stream(row))
        async with contextlib.aclosing(stream):
            async for token in stream:
                if (delta := text.add(token)) is not None:
                    queue.put_nowait(delta)
                if text.ended:
                    return
        raise RuntimeError("the engine ended a row without saying why")
    except Exception as error:
        queue.put_nowait(error)


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """What `work` comes to, unless the client goes away before: it is cancelled then. Raises ClientGone."""
    working = asyncio.ensure_future(work)
    watching = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events; what makes them, and the pieces they are made of, is closed in any case."""

    def __init__(self, events: AsyncGenerator[str, None], source: AsyncGenerator[Any, None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
        self._events, self._source = events, source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events, as long as somebody takes them."""
        # The source by itself, too: events of which none was asked for never come to close it.
        async with contextlib.aclosing(self._source), contextlib.aclosing(self._events):
            await super().__call__(scope, receive, send)


async def stream(
    request: Request,
    texts: Completions,
    beginning: Sequence[dict[str, Any]],
    chunks: Callable[[TextDelta], Sequence[dict[str, Any]]],
    ending: Callable[[], Sequence[dict[str, Any]]],
    *,
    broken: Callable[[Refused], Sequence[dict[str, Any]]] = lambda error: [body_of(error)],
    named: bool = False,
) -> EventStream:
    """A streamed answer; what goes wrong before the first piece is raised, and gets its own status.

    The events of each piece (`chunks`) stand between those of the `beginning` and of the `ending`.

    Args:
        broken: the events in place of the rest, where the stream breaks.
        named: whether each event has its `type` as its name, and the last says itself that it is the last.

    Raises:
        ClientGone: before the first piece.
        WindowExceeded, EngineStopped: see `Engine.stream`.
    """
    source = texts.deltas()
    try:
        first = await unless_gone(request, anext(source))
    except BaseException:
        await source.aclose()  # the piece can have come in the moment in which the client went
        raise

    async def events() -> AsyncGenerator[str, None]:
        for event in (*beginning, *chunks(first)):
            yield _event(event, named)
        try:
            async for delta in source:
                for event in chunks(delta):
                    yield _event(event, named)
        except Exception as error:
            # The status is on its way already: all that is left is to say it in the stream.
            is_named = isinstance(error, ForewordError)
            answer = refused(error) if is_named else Refused(500, "the server failed to go on")  # type: ignore[arg-type]
            logs.failure("stream broken", error, request=request.state.request_id)
            for event in broken(answer):
                yield _event(event, named)
            return
        for event in ending():
            yield _event(event, named)
        if not named:
            yield "data: [DONE]\n\n"

    return EventStream(events(), source)


def _event(data: dict[str, Any], named: bool) -> str:
    name = f"event: {data['type']}\n" if named else ""
    return f"{name}data: {json.dumps(data)}\n\n"


def plain(model: BaseModel) -> dict[str, Any]:
    """A part of an answer as plain data."""
    return model.model_dump(mode="json")
