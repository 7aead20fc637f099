"""What the requests of one server share, by kind of work, so that no kind waits behind another."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from foreword.serving.admission import FairLimiter, Pool, Shares
from foreword.serving.config import Configuration

KEY_THREADS = 4
READ_THREADS = 16
TOKENIZER_THREADS = 4
GRAMMAR_THREADS = 2
"""Whose work, compiling grammars, is done without the interpreter."""
UPLOAD_THREADS = 3
"""One for each of three owners: what an upload does is mostly the interpreter's work, which all wait for."""
BODIES = 16
"""So many of the largest bodies (`body_bytes`, `upload_bytes`) are held at once, of all owners."""
SMALL_BODY = 1 << 16
"""Bytes of a body that needs no place: as many requests as there can be do not fill the memory with them."""
CHARACTERS_PER_PLACE = 1 << 18
"""Text for each place among the tokenizer's threads, which need hundreds of bytes a character for a while."""


class Pools:
    """The places of one server.

    Attributes:
        rows: texts that are written or wait for it.
        keys: threads that check API keys which were never seen to be good, by address; nothing of another
            kind is done there. No more wait than there are connections.
        known_keys: threads that check those which were, by owner: no flood of wrong keys is before them.
        reads: threads of quick work with the store: lists, descriptions, deletions, prefixes from the cache.
        tokenizing: threads that make token ids of prompts.
        grammars: threads that compile the schemas of answers.
        uploads: threads that read, check and store uploaded files.
        bodies, spooled: bytes of bodies in memory, and of uploads on disk until they are stored.
    """

    def __init__(self, configuration: Configuration) -> None:
        shared = configuration.keys  # without keys there is one owner
        self.rows = Shares(configuration.waiting_rows, shared=shared)
        self.keys = Pool(KEY_THREADS, bounded=False)
        self.known_keys = Pool(KEY_THREADS, bounded=False)
        self.reads = Pool(READ_THREADS, shared=shared)
        self.tokenizing = Pool(TOKENIZER_THREADS, shared=shared)
        self.grammars = Pool(GRAMMAR_THREADS, shared=shared)
        self.uploads = Pool(UPLOAD_THREADS, shared=shared)
        self.bodies = FairLimiter(BODIES * configuration.body_bytes, shared=shared)
        self.spooled = FairLimiter(BODIES * configuration.upload_bytes, shared=shared)


def tokenizer_places(characters: int) -> int:
    """How many of the tokenizer's places a text of that length takes."""
    return 1 + characters // CHARACTERS_PER_PLACE


class FairRoute(APIRoute):
    """A route whose work, where it is done in a thread, holds one of the caller's places among `reads`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, in its place."""
        handle = super().get_route_handler()
        if inspect.iscoroutinefunction(self.endpoint):  # takes its places itself, for each kind of work
            return handle

        async def in_its_place(request: Request) -> Response:
            async with request.app.state.server.pools.reads.hold(request.state.identity.account):
                return await handle(request)

        return in_its_place
