"""Memory: prefixes that a worker has read before, ready to be written into the cache."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from foreword.serving.vllm.pages import Pages


class PagesMemory:
    """Pages by digest, up to a number of bytes; the least recently used leave first. For one thread.

    Whether a request may have a prefix is in its ticket, so that no owner stands in the key.

    Attributes:
        read: how often `load` was called.
    """

    def __init__(self, limit: int, load: Callable[[str], Pages]) -> None:
        self.limit = limit
        self.read = 0
        self._load = load
        self._kept: OrderedDict[str, Pages] = OrderedDict()
        self._size = 0

    def get(self, digest: str) -> Pages:
        """The pages, read when they are not here. Raises as `load`."""
        if (found := self._kept.get(digest)) is not None:
            self._kept.move_to_end(digest)
            return found
        self.read += 1
        pages = self._load(digest)
        if pages.size <= self.limit:
            self._kept[digest] = pages
            self._size += pages.size
            while self._size > self.limit:
                self._size -= self._kept.popitem(last=False)[1].size
        return pages

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return self._size

    def __len__(self) -> int:
        return len(self._kept)
