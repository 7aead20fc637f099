"""Blobs in a bucket: S3-compatible storage, or whatever else fsspec reads and writes."""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Iterator
from typing import Any

from foreword.errors import CannotWrite, MissingBlob, StoreUnavailable, UsageError
from foreword.store.blobs import MARKER, Stored


class BucketBlobs:
    """Objects below one URL, such as `s3://bucket/folder`.

    Credentials come from where the storage's own client looks for them, or from `options`, which
    go to fsspec as they are.
    """

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        try:
            import fsspec  # type: ignore[import-untyped]
        except ImportError as error:
            raise UsageError(f"blobs at {_plain(url)} need fsspec; install foreword[store]") from error
        self.url = url
        try:
            # Listings are not cached: other processes add and remove objects.
            self.system, path = fsspec.core.url_to_fs(url, use_listings_cache=False, **options)
        except (ImportError, ValueError) as error:
            raise UsageError(f"blobs at {_plain(url)} can't be used: {error}") from error
        self.root = str(path).rstrip("/")

    def read(self, key: str) -> bytes:
        """See `Blobs.read`."""
        with self._named(key):
            return bytes(self.system.cat_file(f"{self.root}/{key}"))

    def write(self, key: str, content: bytes) -> None:
        """See `Blobs.write`; one request, which the storage does wholly or not at all."""
        with self._named(key):
            if self.system.protocol in ("file", ("file", "local"), "memory"):
                self.system.makedirs(f"{self.root}/{key}".rpartition("/")[0], exist_ok=True)
            self.system.pipe_file(f"{self.root}/{key}", content)

    def remove(self, key: str) -> None:
        """See `Blobs.remove`."""
        with contextlib.suppress(MissingBlob), self._named(key):
            self.system.rm_file(f"{self.root}/{key}")

    def each(self) -> Iterator[Stored]:
        """See `Blobs.each`."""
        with contextlib.suppress(MissingBlob), self._named(""):
            found = self.system.find(self.root, detail=True)
            now = datetime.datetime.now(datetime.UTC)
            for path, entry in found.items():
                key = str(path).removeprefix(self.root).lstrip("/")
                if key != MARKER:
                    yield Stored(key, int(entry.get("size") or 0), _age(entry, now))

    @contextlib.contextmanager
    def _named(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise MissingBlob(f"{self}/{key} is gone; restore it from a backup") from error
        except PermissionError as error:
            raise CannotWrite(
                f"{self}/{key} was refused: {error}; check the rights of the credentials"
            ) from error
        except Exception as error:  # each storage's client has its own errors, none of them ours
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            raise StoreUnavailable(f"{self}/{key} did not answer ({said}); repeat the call later") from error

    def __str__(self) -> str:
        return _plain(self.url).rstrip("/")


def _plain(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//***@", url)  # user and password, where a URL carries them


def _age(entry: dict[str, Any], now: datetime.datetime) -> float:
    written = (
        entry.get("LastModified") or entry.get("last_modified") or entry.get("created") or entry.get("mtime")
    )
    if isinstance(written, int | float):
        return now.timestamp() - float(written)
    if isinstance(written, datetime.datetime):
        return (now - (written if written.tzinfo else written.replace(tzinfo=datetime.UTC))).total_seconds()
    return 0.0  # unknown age: never old enough to be taken for a leftover
