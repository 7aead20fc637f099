"""A prefix as one worker writes it into its paged cache: the worker's heads, ready and kept in memory.

Knows no server's classes. Shapes: L layers, H key/value heads, P prefix length, D head size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch

from foreword.errors import GeometryMismatch, UsageError
from foreword.prefix import Prefix


@dataclass(frozen=True)
class HeadShard:
    """What one worker of a tensor-parallel group holds.

    Attributes:
        layers: layers of the model.
        kv_heads: key/value heads of the whole model.
        head_dim: D.
        rank, workers: which worker of how many.
    """

    layers: int
    kv_heads: int
    head_dim: int
    rank: int = 0
    workers: int = 1

    @property
    def heads(self) -> slice:
        """The worker's own heads; with more workers than heads, several hold the same one.

        Raises:
            UsageError: heads and workers that can't be divided by each other.
        """
        if self.kv_heads % self.workers == 0:
            each = self.kv_heads // self.workers
            return slice(self.rank * each, (self.rank + 1) * each)
        if self.workers % self.kv_heads == 0:
            head = self.rank // (self.workers // self.kv_heads)
            return slice(head, head + 1)
        raise UsageError(
            f"{self.kv_heads} key/value heads can't be shared by {self.workers} workers; choose a "
            "tensor-parallel size that divides them, or a multiple of them"
        )


@dataclass(frozen=True)
class ShardedPrefix:
    """A prefix as one worker writes it.

    Attributes:
        key_LPHD, value_LPHD: of the worker's own heads, token after token as a paged cache takes them.
    """

    key_LPHD: torch.Tensor
    value_LPHD: torch.Tensor

    @property
    def length(self) -> int:
        """P."""
        return int(self.key_LPHD.shape[1])

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.key_LPHD, self.value_LPHD))


def pages_of(prefix: Prefix, share: HeadShard, dtype: torch.dtype) -> ShardedPrefix:
    """The part of a prefix that a worker holds.

    Raises:
        GeometryMismatch: a prefix of another model.
        UsageError: an infix, or a prefix that must stay within a sliding window.
    """
    expected = (share.layers, share.kv_heads, share.head_dim, share.head_dim)
    (layers, kv_heads, _, key_dim), value_dim = prefix.key().shape, prefix.value().shape[3]
    if (layers, kv_heads, key_dim, value_dim) != expected or prefix.streams != ("decoder",):
        raise GeometryMismatch(
            f"the prefix is for {prefix.geometry}; the model in vLLM has {share.layers} layers x "
            f"{share.kv_heads} key/value heads x {share.head_dim}"
        )
    if prefix.template.placement == "infix" or prefix.positions != "text-after-prefix":
        raise UsageError(
            f"the prefix stands {prefix.positions}, placement {prefix.template.placement}; vLLM can put a "
            "prefix in front of the text only, where every layer sees it"
        )
    key_LPHD, value_LPHD = (
        tensor[:, share.heads].transpose(1, 2).to(dtype).contiguous()
        for tensor in (prefix.key(), prefix.value())
    )
    return ShardedPrefix(key_LPHD, value_LPHD)


class PagesMemory:
    """Pages by digest, up to a number of bytes; the least recently used leave first. For one thread.

    Whether a request may have a prefix is what its signature says, so no owner stands in the key.

    Attributes:
        read: how often `load` was called.
    """

    def __init__(self, limit: int, load: Callable[[str], ShardedPrefix]) -> None:
        self.limit = limit
        self.read = 0
        self._load = load
        self._kept: OrderedDict[str, ShardedPrefix] = OrderedDict()
        self._size = 0

    def get(self, digest: str) -> ShardedPrefix:
        """The pages, read when they are not here. Raises as `load`."""
        if (kept := self._kept.get(digest)) is not None:
            self._kept.move_to_end(digest)
            return kept
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
