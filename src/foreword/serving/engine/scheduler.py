"""Which row is prefilled next: rows wait by owner, and enter the batch when its memory suffices for them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from foreword.serving.engine.continuous_batch import RunningRow
from foreword.serving.engine.protocol import Token

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Queues by owner. An owner with a hundred rows delays another's one by a single row."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[Item]] = {}

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def put(self, owner: str, item: Item) -> None:
        """Behind this owner's other rows."""
        self._queues.setdefault(owner, deque()).append(item)

    def first(self) -> Item | None:
        """What `next` would give, still waiting."""
        return next((queue[0] for queue in self._queues.values()), None)

    def next(self) -> Item | None:
        """The first row of the owner whose turn it is, who then goes to the end; None when nothing waits."""
        if not self._queues:
            return None
        owner = next(iter(self._queues))
        queue = self._queues.pop(owner)
        item = queue.popleft()
        if queue:
            self._queues[owner] = queue
        return item


@dataclass(eq=False)
class PendingRow:
    """A row from its request to its last token: where its tokens go, and whether somebody still wants them.

    Attributes:
        loop: the event loop of whoever reads `tokens`.
        gone: nobody reads them any more.
    """

    running: RunningRow
    loop: asyncio.AbstractEventLoop
    tokens: asyncio.Queue[Token | Exception] = field(default_factory=asyncio.Queue)
    gone: bool = False

    def send(self, token: Token | Exception) -> None:
        """Hand over a token, or why there is none, from the engine's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads them any more
            self.loop.call_soon_threadsafe(self.tokens.put_nowait, token)


def next_that_fits(
    waiting: FairQueue[PendingRow], running: Sequence[RunningRow], *, max_rows: int, max_held: int
) -> PendingRow | None:
    """The row to be prefilled now, taken from the queue; None when none waits or there is no place.

    Args:
        running: rows of the batch, at most `max_rows`.
        max_held: most columns times rows. Every row takes as many columns as the longest may come to
            need, so that is counted: a row that has begun is never put out again.
    """
    if len(running) >= max_rows:
        return None
    while (pending := waiting.first()) is not None:
        if pending.gone:
            waiting.next()
            continue
        columns = max(row.most_columns for row in (*running, pending.running))
        if running and (len(running) + 1) * columns > max_held:
            return None  # it stays the next one, or a long row would wait for ever behind short ones
        return waiting.next()
    return None
