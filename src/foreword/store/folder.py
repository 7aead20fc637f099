"""Blobs in a folder, flushed to the disk before anybody hears of them."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from foreword.errors import CannotWrite, MissingBlob, StoreUnavailable
from foreword.files import TEMPORARY_SUFFIX, flush_folder
from foreword.store.blobs import MARKER, Stored

_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


class FolderBlobs:
    """Files below one folder, spread over 256 subfolders by the digest's first byte."""

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
            self._make_folder(path.parent)
            try:
                # Straight to its place: nobody reads a key before its version is committed, and
                # a rename would cost a second flush of the disk.
                _write(path, content)
            except FileExistsError:
                # Somebody is writing the same bytes now, or was killed while doing so.
                temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
                _write(temporary, content)
                os.replace(temporary, path)
            flush_folder(path.parent)
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno in _REFUSED:
                raise CannotWrite(f"{path} could not be written: {reason}; nothing was changed") from error
            raise StoreUnavailable(f"{path} could not be written: {reason}; nothing was changed") from error

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
                    found = path.stat()
                    if key != MARKER:
                        yield Stored(key, found.st_size, now - found.st_mtime)

    def _make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            flush_folder(folder.parent)

    def __str__(self) -> str:
        return str(self.folder)


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            view = memoryview(content)
            while view:
                view = view[file.write(view) or 0 :]
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
