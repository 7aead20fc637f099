"""Answering: rows through the engine, all at once, as pieces of text in the order in which they come."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from typing import Any, TypeVar, cast

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Send

from foreword.serving.engine.detokenizer import Piece, RowText
from foreword.serving.engine.protocol import Engine, Row, Token

T = TypeVar("T")


class ClientGone(Exception):
    """Nobody is there any more to take the answer."""


async def pieces(
    engine: Engine, tokenizer: Any, rows: Sequence[Row], stop: Sequence[str]
) -> AsyncGenerator[Piece, None]:
    """Pieces of all rows until each has its last; closing this frees every row.

    Raises:
        WindowExceeded, EngineStopped: see `Engine.stream`; the other rows are freed.
    """
    # Unbounded, and still small: a row has no more pieces than tokens. A slow reader must not hold
    # up a batch in which other requests have rows.
    queue: asyncio.Queue[Piece | BaseException] = asyncio.Queue()
    tasks = [
        asyncio.create_task(_pump(engine, row, RowText(tokenizer, index, row.end_ids, stop), queue))
        for index, row in enumerate(rows)
    ]
    left = len(rows)
    try:
        while left:
            found = await queue.get()
            if isinstance(found, BaseException):
                raise found
            left -= found.finish_reason is not None
            yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(engine: Engine, row: Row, text: RowText, queue: asyncio.Queue[Piece | BaseException]) -> None:
    try:
        stream = cast("AsyncGenerator[Token, None]", engine.stream(row))
        async with contextlib.aclosing(stream):
            async for token in stream:
                if (piece := text.add(token)) is not None:
                    queue.put_nowait(piece)
                if text.ended:
                    return
        raise RuntimeError("the engine ended a row without saying why")
    except Exception as error:
        queue.put_nowait(error)


async def while_there(request: Request, work: Awaitable[T]) -> T:
    """What `work` comes to, unless the client goes away before: then it is cancelled.

    Raises:
        ClientGone: nobody is there to take the answer.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events; what makes them is closed when the client is gone."""

    def __init__(self, events: AsyncIterator[str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-store"})

    async def stream_response(self, send: Send) -> None:
        """Send events, and close their source in any case."""
        async with contextlib.aclosing(cast("AsyncGenerator[Any, None]", self.body_iterator)):
            await super().stream_response(send)
