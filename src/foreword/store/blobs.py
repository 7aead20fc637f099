"""Blobs: prefix files by key, in a folder or in a bucket; they know bytes and keys, nothing else.

A key is used once: it carries the digest and a random part. So a file that is being removed can
never be the file that a put, at the same moment, believes to be there.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from foreword.errors import AlteredBlob, UsageError

MARKER = "foreword-store"
"""Key of the file that says which store the blobs belong to."""


@dataclass(frozen=True)
class Stored:
    """A file that lies in the blob storage.

    Attributes:
        key: where.
        size: in bytes.
        age: seconds since it was written.
    """

    key: str
    size: int
    age: float


class Blobs(Protocol):
    """Where prefix files lie."""

    def read(self, key: str) -> bytes:
        """The bytes under `key`.

        Raises:
            MissingBlob: there are none.
            StoreUnavailable: the storage does not answer.
        """

    def write(self, key: str, content: bytes) -> None:
        """Put bytes under `key`; when this returns they survive a power cut. Replaces what is there.

        Raises:
            CannotWrite: no space or no right.
            StoreUnavailable: the storage does not answer.
        """

    def remove(self, key: str) -> None:
        """Remove the bytes under `key`; nothing happens when there are none."""

    def each(self) -> Iterator[Stored]:
        """Everything that lies there, unfinished files of killed writers too, but for the marker."""


def new_key(digest: str) -> str:
    """A key for a file with that digest that was never used before."""
    return f"{digest[:2]}/{digest}-{secrets.token_hex(4)}.prefix"


def read_checked(blobs: Blobs, key: str, digest: str) -> bytes:
    """The bytes under `key`, if they are the ones that were stored.

    Raises:
        MissingBlob, StoreUnavailable: as `Blobs.read`.
        AlteredBlob: their SHA-256 is another one.
    """
    content = blobs.read(key)
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise AlteredBlob(
            f"the stored file {key} has SHA-256 {found[:12]}..., expected {digest[:12]}...: it was "
            "altered after it was stored and is not used. Restore it from a backup, or put the same "
            "prefix again"
        )
    return content


def open_blobs(url: str, options: dict[str, Any] | None = None) -> Blobs:
    """Blobs in a folder, or at any URL that fsspec reads.

    Raises:
        UsageError: a URL with a scheme that fsspec does not know.
        CannotWrite: the folder can't be made.
    """
    if "://" in url and not url.startswith("file://"):
        from foreword.store.bucket import BucketBlobs

        return BucketBlobs(url, options or {})
    if options:
        raise UsageError("blob options are for buckets; a folder has none")
    from foreword.store.folder import FolderBlobs

    return FolderBlobs(url.removeprefix("file://"))
