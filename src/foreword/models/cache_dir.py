"""The user's cache folder: what lies where, and who may change it at a time.

models/<alias>/        a finished model; appears whole, by a rename
downloads/<alias>/     wheels and GGUF files of a pull that is not finished yet
locks/<alias>.lock     held by the process that pulls
fingerprints/          digests of model folders, see `foreword.models.fingerprint`

Files that were fetched are compared with the SHA-256 that the catalogue or the hub names.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from foreword.errors import CannotWrite, ChecksumMismatch, ForewordError
from foreword.files import TEMPORARY_SUFFIX, writing_folder

ENVIRONMENT_VARIABLE = "FOREWORD_CACHE"

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EIO)

Notify = Callable[[str], None]


def silent(message: str) -> None:
    """A `notify` that tells nobody."""


def cache_folder() -> Path:
    """`FOREWORD_CACHE`, or the place that the operating system has for caches."""
    if chosen := os.environ.get(ENVIRONMENT_VARIABLE):
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("foreword", appauthor=False))


def model_folder(alias: str) -> Path:
    """Where the finished model of an alias lies."""
    return cache_folder() / "models" / alias


def downloads_folder(alias: str) -> Path:
    """Where the downloads of an alias wait for its conversion."""
    return cache_folder() / "downloads" / alias


@contextlib.contextmanager
def refusals_named(folder: Path) -> Iterator[None]:
    """Turn the system's refusal to write below `folder` into an error that says what to do.

    Raises:
        CannotWrite: no space, no right, or not a folder.
    """
    try:
        yield
    except ForewordError:
        raise
    except Exception as error:
        number = getattr(error, "errno", None)
        # safetensors reports a full disk as an error of its own, with the system's text in it
        if number in FULL or os.strerror(errno.ENOSPC) in str(error):
            raise CannotWrite(
                f"the disk of {folder} is full; free some space "
                f"or point {ENVIRONMENT_VARIABLE} to another disk"
            ) from error
        if number in REFUSED:
            raise CannotWrite(
                f"{folder} can't be written: {os.strerror(number)}; "
                f"give yourself the right or point {ENVIRONMENT_VARIABLE} to another folder"
            ) from error
        raise


def check_space(folder: Path, needed: int) -> None:
    """Find out before the download whether the result will fit.

    Raises:
        CannotWrite: less than `needed` bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CannotWrite(
            f"{folder} has {free / 1e6:.0f} MB free, this model needs {needed / 1e6:.0f} MB; "
            f"free some space or point {ENVIRONMENT_VARIABLE} to another disk"
        )


@contextlib.contextmanager
def locked(alias: str, notify: Notify) -> Iterator[None]:
    """Hold the right to change what the cache has of `alias`; waits for whoever holds it.

    The lock is the operating system's: it ends with its process, however that ends.

    Raises:
        CannotWrite: the cache can't be written.
    """
    from filelock import FileLock, Timeout

    folder = cache_folder() / "locks"
    with refusals_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{alias}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            notify(f"another process is pulling {alias}; waiting for it")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def new_folder(destination: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; it becomes `destination` when the block ends without an error.

    Call with the lock held: leftovers of killed processes are swept away first.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    for leftover in destination.parent.glob(f".{destination.name}.*{TEMPORARY_SUFFIX}"):
        shutil.rmtree(leftover, ignore_errors=True)
    with writing_folder(destination) as temporary:
        yield temporary


def sha256_of(path: Path) -> str:
    """Digest of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str, *, origin: str) -> None:
    """Delete `path` and complain unless it is the expected file.

    Raises:
        ChecksumMismatch: it is not; nothing of it stays.
    """
    if (found := sha256_of(path)) != expected:
        path.unlink()
        raise ChecksumMismatch(mismatch(path.name, origin, found, expected))


def mismatch(name: str, origin: str, found: str, expected: str) -> str:
    """What to tell about a file that is not the expected one."""
    return (
        f"{name} from {origin} has SHA-256 {found}, expected {expected}: it was damaged on the way or "
        "is not the file it says; it was deleted. Try again, and check your proxy or mirror if it stays so"
    )
