"""Waiting: rows that are not yet in the running batch, taken from one owner after the other."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

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
