"""Admission: what owners share (waiting places, bytes of bodies, threads), so that none takes it all.

One rule everywhere: an owner may hold as much as it leaves free. Alone it has half, beside another that takes
all it can a third, and whoever comes next always finds something. Who must wait does so by owner, and owners
take turns.

For one event loop: nothing here is called from other threads.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import anyio
import anyio.to_thread

from foreword.serving.errors import Refused

T = TypeVar("T")

MOST_WAITING = 256
"""Requests of one owner that wait for the same thing; more are refused."""


class Shares:
    """So many places, held by owners.

    Args:
        shared: False where all are one owner's, who may then hold every place.
    """

    def __init__(self, places: int, *, shared: bool = True) -> None:
        self.places = places
        self.held = 0
        self._shared = shared
        self._of_owner: dict[str, int] = {}

    def may_take(self, owner: str, amount: int = 1) -> bool:
        """Whether the owner may have so many places now."""
        mine, free = self._of_owner.get(owner, 0), self.places - self.held - amount
        return free >= 0 and not (self._shared and mine and mine + amount > free)

    def take(self, owner: str, amount: int = 1) -> bool:
        """Take places, if the owner may have so many now."""
        if not self.may_take(owner, amount):
            return False
        self._of_owner[owner] = self._of_owner.get(owner, 0) + amount
        self.held += amount
        return True

    def give_back(self, owner: str, amount: int = 1) -> None:
        """Free places that were taken."""
        self.held -= amount
        self._of_owner[owner] -= amount
        if not self._of_owner[owner]:
            del self._of_owner[owner]

    def held_by(self, owner: str) -> int:
        """Places of one owner."""
        return self._of_owner.get(owner, 0)

    def free_for(self, amount: int) -> bool:
        """Whether somebody who holds nothing yet could take so many."""
        return self.held + amount <= self.places


class FairLimiter:
    """Places that requests wait for, within their owners' shares."""

    def __init__(self, places: int, *, shared: bool = True, bounded: bool = True) -> None:
        """
        Args:
            bounded: whether an owner's requests are refused where too many wait.
        """
        self._shares = Shares(places, shared=shared)
        self._most_waiting = MOST_WAITING if shared and bounded else None
        self._waiting: dict[str, deque[tuple[asyncio.Future[None], int]]] = {}

    @contextlib.asynccontextmanager
    async def hold(self, owner: str, amount: int = 1) -> AsyncIterator[None]:
        """Hold places in the block, all of them at most; wait for them before.

        Raises:
            Refused: 429, too many requests of this owner wait already.
        """
        amount = min(amount, self._shares.places)
        await self._take(owner, amount)
        try:
            yield
        finally:
            self._shares.give_back(owner, amount)
            self._admit()

    async def _take(self, owner: str, amount: int) -> None:
        queue = self._waiting.setdefault(owner, deque())
        if self._most_waiting is not None and len(queue) >= self._most_waiting:
            raise Refused(
                429,
                f"{len(queue)} requests of yours wait already; send fewer at once",
                code="too_many_at_once",
                headers={"retry-after": "2"},
            )
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append((ready, amount))
        self._admit()
        try:
            await ready
        except asyncio.CancelledError:
            if ready.done() and not ready.cancelled():  # admitted in the same moment
                self._shares.give_back(owner, amount)
            else:
                self._drop(owner, ready)
            self._admit()
            raise

    def _drop(self, owner: str, ready: asyncio.Future[None]) -> None:
        left = deque(each for each in self._waiting.get(owner, ()) if each[0] is not ready)
        if left:
            self._waiting[owner] = left
        else:
            self._waiting.pop(owner, None)

    def _admit(self) -> None:
        """Let in all who may: one of each owner, then a second."""
        while (owner := self._next_owner()) is not None:
            queue = self._waiting.pop(owner)  # and goes to the end
            ready, amount = queue.popleft()
            if queue:
                self._waiting[owner] = queue
            if ready.done():  # whoever waited has just given up
                self._shares.give_back(owner, amount)
            else:
                ready.set_result(None)

    def _next_owner(self) -> str | None:
        """The owner whose first request has got its places just now."""
        for owner, queue in self._waiting.items():
            amount = queue[0][1]
            if self._shares.take(owner, amount):
                return owner
            if not self._shares.free_for(amount):
                return None  # its turn stays, or a large request would wait for ever behind small ones
        return None


class Pool:
    """Threads for one kind of work; owners share them."""

    def __init__(self, threads: int, *, shared: bool = True, bounded: bool = True) -> None:
        """The last two as of `FairLimiter`."""
        self.threads = threads
        self._places = FairLimiter(threads, shared=shared, bounded=bounded)
        self._limiter = anyio.CapacityLimiter(threads)

    async def run(self, owner: str, work: Callable[[], T], *, places: int = 1) -> T:
        """What `work` gives in a thread of the pool; more places are for work that takes more memory.

        Raises as `FairLimiter.hold`, and whatever `work` raises.
        """
        async with self._places.hold(owner, places):
            return await anyio.to_thread.run_sync(work, limiter=self._limiter)

    def hold(self, owner: str) -> contextlib.AbstractAsyncContextManager[None]:
        """Hold a place of the pool for work that finds its own thread."""
        return self._places.hold(owner)
