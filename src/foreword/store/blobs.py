"""Blobs: prefix files by key, in a folder or in a bucket (S3-compatible, or whatever else fsspec knows).

They know bytes and keys, nothing else. A key is used once: it carries the digest and a random part. So a file
that is being removed can never be the file that a put, at the same moment, believes to be there.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from foreword.errors import (
    AlteredBlob,
    CannotWrite,
    MissingBlob,
    StoreUnavailable,
    UnknownStore,
    UsageError,
)
from foreword.files import TEMPORARY_SUFFIX, flush_folder

MARKER = "foreword-store"
"""Key of the file that says which store the blobs belong to."""


@dataclass(frozen=True)
class Stored:
    """A file that lies in the blob storage: its size in bytes, its age in seconds since it was written."""

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
        MissingBlob: there are none, though the storage is there: its marker is.
        StoreUnavailable: the storage does not answer, or is not there at all.
        AlteredBlob: their SHA-256 is another one.
    """
    try:
        content = blobs.read(key)
    except MissingBlob:
        check_there(blobs)
        raise
    actual = hashlib.sha256(content).hexdigest()
    if actual != digest:  # what was lost on the way here is no fault of the file's: a second look decides
        content = blobs.read(key)
        actual = hashlib.sha256(content).hexdigest()
    if actual != digest:
        raise AlteredBlob(
            f"the stored file {key} has SHA-256 {actual[:12]}..., expected {digest[:12]}...: it was "
            "altered after it was stored and is not used. Restore it from a backup, or put the same "
            "prefix again"
        )
    return content


def check_there(blobs: Blobs) -> None:
    """A disk that is not mounted looks like one without files. Raises StoreUnavailable: no marker there."""
    try:
        blobs.read(MARKER)
    except MissingBlob as error:
        raise StoreUnavailable(
            f"the place for files {blobs} has none, nor the marker of a store: is it mounted?"
        ) from error


def open_blobs(url: str, options: dict[str, Any] | None = None) -> Blobs:
    """Blobs in a folder, or at any URL that fsspec reads.

    Raises:
        UsageError: a URL with a scheme that fsspec does not know.
        CannotWrite: the folder can't be made.
    """
    if "://" in url and not url.startswith("file://"):
        return BucketBlobs(url, options or {})
    if options:
        raise UsageError("blob options are for buckets; a folder has none")
    return FolderBlobs(url.removeprefix("file://"))


def check_marker(blobs: Blobs, store: str) -> None:
    """Refuse blobs of another store: two databases would collect each other's files as garbage.

    Fresh ones are marked with `store`, the id of this one.

    Raises:
        UnknownStore: they are another store's.
        CannotWrite, StoreUnavailable: fresh blobs could not be marked as this store's.
    """
    with contextlib.suppress(MissingBlob):
        found = blobs.read(MARKER).decode(errors="replace")
        if found == store:
            return
        # Less than all of ours, as whoever wrote it was killed or writes it now, is written again.
        if not store.startswith(found):
            raise UnknownStore(
                f"the files at {blobs} belong to another store; choose another place for this one's"
            )
    blobs.write(MARKER, store.encode())


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
            now = datetime.datetime.now(datetime.UTC)
            for path, entry in self.system.find(self.root, detail=True).items():
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
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise StoreUnavailable(
                f"{self}/{key} did not answer ({reason}); repeat the call later"
            ) from error

    def __str__(self) -> str:
        return _plain(self.url).rstrip("/")


def _plain(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//***@", url)  # user and password, where a URL carries them


def _age(entry: dict[str, Any], now: datetime.datetime) -> float:
    dates = ("LastModified", "last_modified", "created", "mtime")
    written = next((entry[name] for name in dates if entry.get(name)), None)
    if isinstance(written, int | float):
        return now.timestamp() - float(written)
    if isinstance(written, datetime.datetime):
        return (now - (written if written.tzinfo else written.replace(tzinfo=datetime.UTC))).total_seconds()
    return 0.0  # unknown age: never old enough to be taken for a leftover


_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


class FolderBlobs:
    """Files below one folder, spread over 256 subfolders by the digest's first byte.

    They are flushed to the disk before anybody hears of them.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def read(self, key: str) -> bytes:
        """See `Blobs.read`."""
        try:
            return (self.folder / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingBlob(
                f"the stored file {self.folder / key} is gone; restore it from a backup"
            ) from error
        except OSError as error:
            raise StoreUnavailable(f"{self.folder / key} could not be read: {error.strerror}") from error

    def write(self, key: str, content: bytes) -> None:
        """See `Blobs.write`."""
        path = self.folder / key
        try:
            if not path.parent.is_dir():
                path.parent.mkdir(parents=True, exist_ok=True)
                flush_folder(path.parent.parent)
            try:
                # Straight to its place: nobody reads a key before its version is committed, and
                # a rename would cost a second flush of the disk.
                _write(path, content)
            except FileExistsError:
                # Somebody is writing the same bytes now, or was killed while doing so.
                temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
                try:
                    _write(temporary, content)
                    os.replace(temporary, path)
                finally:
                    temporary.unlink(missing_ok=True)
            flush_folder(path.parent)
        except OSError as error:
            reason = error.strerror or str(error)
            kind = CannotWrite if error.errno in _REFUSED else StoreUnavailable
            raise kind(f"{path} could not be written: {reason}; nothing was changed") from error

    def remove(self, key: str) -> None:
        """See `Blobs.remove`."""
        try:
            (self.folder / key).unlink(missing_ok=True)
        except OSError as error:
            raise CannotWrite(f"{self.folder / key} could not be removed: {error.strerror}") from error

    def each(self) -> Iterator[Stored]:
        """See `Blobs.each`."""
        now = time.time()
        for folder, _, names in os.walk(self.folder):
            for name in names:
                path = Path(folder, name)
                key = path.relative_to(self.folder).as_posix()
                with contextlib.suppress(FileNotFoundError):  # removed since the folder was read
                    status = path.stat()
                    if key != MARKER:
                        yield Stored(key, status.st_size, now - status.st_mtime)

    def __str__(self) -> str:
        return str(self.folder)


def _write(path: Path, content: bytes) -> None:
    """Make a file that was not there; a failure leaves it empty.

    It is emptied by its handle and not removed by its name: somebody who stored the same bytes meanwhile
    may have put their own file, which is confirmed, under that name.
    """
    with path.open("xb", buffering=0) as file:
        try:
            rest = memoryview(content)
            while rest:  # one call takes 2 GB at most
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except BaseException:
            with contextlib.suppress(OSError):
                file.truncate(0)
            raise
