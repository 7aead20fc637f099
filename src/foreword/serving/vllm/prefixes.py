"""How a vLLM worker gets a prefix: read by its digest, cut to the worker's heads, kept ready for the cache.

Knows no server's classes. Shapes: L layers, H key/value heads, P prefix length, D head size.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from foreword.errors import AlteredBlob, GeometryMismatch, UnknownPrefix, UsageError
from foreword.prefix import Prefix
from foreword.prefix_sizes import StreamGeometry
from foreword.store.cache import MemoryCache

STORE, BLOBS = "FOREWORD_STORE", "FOREWORD_STORE_BLOBS"
"""Environment variables: a database's URL can hold a password, which is not for a command line."""

JOINED = "+"
"""Between the digests of prefixes that a worker joins: what it reads are stored files, checked as any."""


class Source(Protocol):
    """Where prefixes are; what is read is checked against its digest."""

    def get(self, digest: str) -> Prefix:
        """The prefix with that digest.

        Raises:
            UnknownPrefix: there is none.
            AlteredBlob: its file is no longer what it was; it is never returned.
            ForewordError: it can't be read; says why.
        """
        ...

    def equivalents(self, weights: str | None) -> frozenset[str]:
        """Fingerprints of bases whose prefixes were declared to run on those weights, too."""
        ...


class FolderSource:
    """Files `<digest>.prefix` in one folder."""

    def __init__(self, folder: Path) -> None:
        """Raises UsageError when there is no such folder."""
        if not folder.is_dir():
            raise UsageError(f"{folder} is no folder; expected one with files <digest>.prefix")
        self._folder = folder

    def get(self, digest: str) -> Prefix:
        """See `Source`."""
        _check_digest(digest)
        path = self._folder / f"{digest}.prefix"
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise UnknownPrefix(f"{path} is not there; put the prefix file under its digest") from error
        actual = hashlib.sha256(content).hexdigest()
        if actual != digest:
            raise AlteredBlob(
                f"{path} has SHA-256 {actual[:12]}..., expected its name; it is not used. Fetch it again"
            )
        return Prefix.from_bytes(content, where=str(path))

    def equivalents(self, weights: str | None) -> frozenset[str]:
        """None: declarations are kept in a store."""
        return frozenset()


class StoreSource:
    """The store; whichever of its versions has the digest."""

    def __init__(self, place: str, blobs: str | None) -> None:
        """Raises as `PrefixStore`."""
        from foreword.store import PrefixStore

        # Without a memory tier: a worker keeps what it has read in the form in which it writes it.
        self._store = PrefixStore(place, blobs=blobs, create=False, memory_bytes=0)

    def get(self, digest: str) -> Prefix:
        """See `Source`."""
        import sqlalchemy

        from foreword.store.schema import version

        _check_digest(digest)
        query = sqlalchemy.select(version.c.owner, version.c.name, version.c.number)
        query = query.where(version.c.digest == digest).limit(1)
        for row in self._store.database.rows(query):
            return self._store.get(f"{row.owner}/{row.name}@{row.number}")
        raise UnknownPrefix(f"no version in the store has the digest {digest[:12]}...; it was deleted")

    def equivalents(self, weights: str | None) -> frozenset[str]:
        """See `Source`."""
        return frozenset() if weights is None else self._store.equivalents(weights)


def open_source(extra: Mapping[str, Any], environment: Mapping[str, str]) -> Source:
    """The folder that the connector's settings name, else the store that the environment names.

    Raises:
        UsageError: neither.
        Whatever `PrefixStore` raises.
    """
    if folder := extra.get("folder"):
        return FolderSource(Path(folder))
    if place := environment.get(STORE):
        return StoreSource(place, environment.get(BLOBS) or None)
    raise UsageError(
        f"no place to load prefixes from: set {STORE} in vLLM's environment, or folder in "
        "kv_connector_extra_config"
    )


def _check_digest(digest: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise UnknownPrefix(f"{digest[:80]!r} is no digest; expected 64 hexadecimal digits")


@dataclass(frozen=True)
class HeadShard:
    """What one worker of a tensor-parallel group holds.

    Attributes:
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


def shard_of(prefix: Prefix, share: HeadShard, dtype: torch.dtype) -> ShardedPrefix:
    """The part of a prefix that a worker holds.

    Raises:
        GeometryMismatch: a prefix of another model.
        UsageError: an infix, or a prefix that must stay within a sliding window.
    """
    expected = StreamGeometry(share.layers, share.kv_heads, share.head_dim, share.head_dim)
    if prefix.geometry.streams != {"decoder": expected}:
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


class ShardMemory:
    """Shards by digest, up to a number of bytes; the least recently used leave first.

    Whether a request may have a prefix is what its signature says, so no owner stands in the key. `read` is
    how often `load` was called.
    """

    def __init__(self, limit: int, load: Callable[[str], ShardedPrefix]) -> None:
        self.read = 0
        self._load = load
        self._kept: MemoryCache[ShardedPrefix] = MemoryCache(limit)

    def get(self, digest: str) -> ShardedPrefix:
        """The shard, read when it is not here. Raises as `load`."""
        shard = self._kept.get("", digest)
        if shard is None:
            self.read += 1
            shard = self._load(digest)
            self._kept.put("", digest, shard, shard.size)
        return shard

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return self._kept.size

    def __len__(self) -> int:
        return len(self._kept)
