"""Cache: prefixes ready for the model in memory, their files on the disk, both with a byte limit.

Whether a caller may have a prefix is asked of the database at every call; the cache only saves
the reading. Its keys carry the owner beside the digest, so that nothing of one owner is ever
handed out, kept or removed on account of another, and forgetting an owner finds all of it.

Forgetting happens in one process and concerns all. The database names the last audit entry that
forgot somebody, every call reads that number along, and a cache that has seen an older one drops
the owners forgotten since before it serves anything.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from foreword.files import TEMPORARY_SUFFIX
from foreword.store.names import folder_name

if TYPE_CHECKING:
    from foreword.prefix import Prefix

T = TypeVar("T")

EPOCH_FILE = "forgotten"
BETWEEN = "+"
"""Between the owners, and the digests, of prefixes that were made one: no name has it."""
RESCAN_SHARE = 16
"""The disk tier is counted again after each 1/16 of its limit: other processes add to it too."""


class MemoryCache(Generic[T]):
    """Prefixes, or their parts, by owner and digest; the least recently used leave first.

    `size` is what is kept, in bytes of files.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str], tuple[T, int]] = OrderedDict()
        self.size = 0

    def get(self, owner: str, digest: str) -> T | None:
        """The prefix, now the most recently used; None when it is not here."""
        with self._lock:
            kept = self._kept.get((owner, digest))
            if kept is not None:
                self._kept.move_to_end((owner, digest))
            return kept and kept[0]

    def put(self, owner: str, digest: str, prefix: T, size: int) -> None:
        """Keep a prefix of `size` bytes; not at all when it alone is over the limit."""
        if size > self.limit:
            return
        with self._lock:
            _, old = self._kept.pop((owner, digest), (None, 0))
            self._kept[owner, digest] = (prefix, size)
            self.size += size - old
            while self.size > self.limit:
                _, (_, gone) = self._kept.popitem(last=False)
                self.size -= gone

    def drop(self, owner: str) -> None:
        """Keep nothing of an owner, nor what was made of their prefixes and others'."""
        with self._lock:
            for key in [key for key in self._kept if owner in key[0].split(BETWEEN)]:
                _, gone = self._kept.pop(key)
                self.size -= gone

    def __len__(self) -> int:
        return len(self._kept)


class DiskCache:
    """Prefix files in `folder/<owner>/<digest>`; the least recently used leave first.

    A cache may fail silently: a file that can't be written is not kept, one whose digest is wrong
    is removed and not returned. The limit holds for one process; several on one folder may pass it
    by 1/16 each until the next count.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._lock = threading.Lock()
        self._size: int | None = None  # unknown until counted
        self._added = 0

    def get(self, owner: str, digest: str) -> bytes | None:
        """The bytes with that digest, now the most recently used; None when they are not here."""
        path = self._path(owner, digest)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        with contextlib.suppress(OSError):
            if hashlib.sha256(content).hexdigest() != digest:
                path.unlink()
                return None
            os.utime(path)
        return content

    def put(self, owner: str, digest: str, content: bytes) -> None:
        """Keep the bytes, if they fit and the disk lets us."""
        if len(content) > self.limit:
            return
        path = self._path(owner, digest)
        with contextlib.suppress(OSError):
            _write(path, content)
            self._shrink(len(content))

    def drop(self, owner: str) -> int:
        """Remove everything of an owner; how many files that were."""
        folder = self.folder / folder_name(owner)
        count = sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0
        shutil.rmtree(folder, ignore_errors=True)
        self._size = None
        return count

    def epoch(self) -> int:
        """The last forgetting that these files have seen; 0 when nobody wrote it down."""
        try:
            return int((self.folder / EPOCH_FILE).read_text())
        except (OSError, ValueError):
            return 0

    def set_epoch(self, epoch: int) -> None:
        """Write it down. If that fails, the same owners are dropped once more next time."""
        with contextlib.suppress(OSError):
            _write(self.folder / EPOCH_FILE, str(epoch).encode())

    def _path(self, owner: str, digest: str) -> Path:
        return self.folder / folder_name(owner) / digest

    def _shrink(self, added: int) -> None:
        with self._lock:
            self._added += added
            if self._size is not None:
                self._size += added
                if self._size <= self.limit and self._added < self.limit // RESCAN_SHARE:
                    return
            files = []
            for path in self.folder.glob("*/*"):
                with contextlib.suppress(OSError):
                    status = path.stat()
                    files.append((status.st_mtime_ns, status.st_size, path))
            self._size, self._added = sum(size for _, size, _ in files), 0
            for _, size, path in sorted(files):
                if self._size <= self.limit:
                    break
                with contextlib.suppress(OSError):
                    path.unlink()
                self._size -= size


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all, so that another process never reads half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class Cache:
    """Both tiers, and which owners they have dropped.

    Attributes:
        reads: how many prefixes came from which tier; `blobs` for those that neither had.
    """

    def __init__(self, memory: MemoryCache[Prefix], disk: DiskCache | None, epoch: int) -> None:
        self.memory = memory
        self.disk = disk
        self.reads = {"memory": 0, "disk": 0, "blobs": 0}
        self._lock = threading.Lock()
        # The files may be older than this process; what they have seen is written beside them.
        self._epoch = epoch if disk is None else disk.epoch()

    def settle(self, epoch: int, forgotten_since: Callable[[int], Iterable[str]]) -> None:
        """Drop the owners that were forgotten up to `epoch`, the number that a call has just read."""
        if epoch <= self._epoch:
            return
        with self._lock:
            for owner in forgotten_since(self._epoch):
                self.drop(owner)
            self._epoch = max(epoch, self._epoch)
            if self.disk is not None:
                self.disk.set_epoch(self._epoch)

    def drop(self, owner: str) -> int:
        """Drop everything of an owner; how many files that were."""
        self.memory.drop(owner)
        return self.disk.drop(owner) if self.disk is not None else 0

    def get(self, owner: str, digest: str, load: Callable[[bytes], Prefix]) -> Prefix | None:
        """The prefix from memory, or made by `load` from the file on the disk, or None."""
        prefix, tier = self.memory.get(owner, digest), "memory"
        if prefix is None:
            tier = "blobs"
            content = self.disk.get(owner, digest) if self.disk is not None else None
            if content is not None:
                tier = "disk"
                prefix = load(content)
                self.memory.put(owner, digest, prefix, len(content))
        self.reads[tier] += 1
        return prefix

    @property
    def epoch(self) -> int:
        """The last forgetting that was seen."""
        return self._epoch

    def joined(
        self, owners: Sequence[str], digests: Sequence[str], join: Callable[[], Prefix], epoch: int
    ) -> Prefix:
        """What `join` makes of several prefixes, in memory until it is used least, or one owner is dropped.

        Args:
            epoch: from before the prefixes were read.
        """
        owner, digest = BETWEEN.join(sorted(set(owners))), BETWEEN.join(digests)
        prefix = self.memory.get(owner, digest)
        if prefix is None:
            prefix = join()
            with self._lock:
                if epoch == self._epoch:  # else somebody was forgotten meanwhile, as in `put`
                    self.memory.put(owner, digest, prefix, prefix.numel() * prefix.dtype.itemsize)
        return prefix

    def put(self, owner: str, digest: str, prefix: Prefix, content: bytes, epoch: int) -> None:
        """Keep what the database named at `epoch`."""
        with self._lock:
            # Somebody was forgotten while the file was read, perhaps this owner: their copies were dropped
            # already, and nothing would drop this one.
            if epoch < self._epoch:
                return
            self.memory.put(owner, digest, prefix, len(content))
            if self.disk is not None:
                self.disk.put(owner, digest, content)
