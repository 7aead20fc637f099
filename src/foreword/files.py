"""Files and folders that are written whole or not at all.

Everything goes to a temporary place beside its destination, is flushed to the disk and renamed; whoever is
killed in the middle leaves what was there before.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from foreword.errors import CannotWrite, OutputExists

TEMPORARY_SUFFIX = ".partial"
LEFTOVER_SECONDS = 3600.0
"""Age from which a temporary file counts as one whose writer was killed."""


def check_output(path: Path, *, overwrite: bool) -> None:
    """Find out before the work, not after it, whether `path` can be written.

    Raises:
        OutputExists: it is there and `overwrite` is false.
        CannotWrite: it is a folder, or its folder is absent or not writable.
    """
    if path.is_dir():
        raise CannotWrite(f"{path} is a folder; give the name of a file to write")
    if path.exists() and not overwrite:
        raise OutputExists(f"{path} exists already; choose another name or pass --overwrite to replace it")
    if not path.parent.is_dir():
        raise CannotWrite(f"the folder {path.parent} of {path.name} does not exist; create it first")
    if not os.access(path.parent, os.W_OK):
        raise CannotWrite(f"no right to write into {path.parent}; choose another folder for {path.name}")


@contextlib.contextmanager
def writing(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield the temporary file to fill; move it to `path` when the block ends without an error.

    Raises:
        OutputExists: `path` is there, or came while the block ran, and `overwrite` is false.
        CannotWrite: the system refused (no space, no right); says why.
    """
    path = Path(path)
    check_output(path, overwrite=overwrite)
    remove_leftovers(path.parent, glob.escape(path.name))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        # Made here and now, so that it gets the rights that the user's umask gives new files.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        if overwrite:
            os.replace(temporary, path)
        else:
            _move_to_new(temporary, path)
        flush_folder(path.parent)
    except FileExistsError as error:
        raise OutputExists(f"{path} exists already; pass --overwrite to replace it") from error
    except OSError as error:
        raise CannotWrite(
            f"{path} could not be written: {error.strerror or error}; nothing was changed"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Remove what killed writers of files that fit `pattern` left in `folder`: old temporary files."""
    for name in glob.iglob(f".{pattern}.*{TEMPORARY_SUFFIX}", root_dir=folder):
        with contextlib.suppress(OSError):
            if time.time() - (folder / name).stat().st_mtime > LEFTOVER_SECONDS:
                (folder / name).unlink()


def _move_to_new(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)  # unlike rename, fails when somebody else was faster
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        # A file system without hard links: the check and the rename are two steps there.
        if path.exists():
            raise FileExistsError(errno.EEXIST, "File exists", str(path)) from error
        os.replace(temporary, path)


def write_bytes(path: Path, content: bytes, *, overwrite: bool = False) -> None:
    """`writing` for content that is in memory already."""
    with writing(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str, *, overwrite: bool = False) -> None:
    """`write_bytes` in UTF-8."""
    write_bytes(path, content.encode(), overwrite=overwrite)


@contextlib.contextmanager
def writing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill with files; it becomes `folder` when the block ends without an error.

    A folder that is there is replaced: set aside first, because none is renamed over one that is not empty.

    Raises:
        OSError: the system refused; `folder` is what it was.
    """
    temporary = Path(tempfile.mkdtemp(TEMPORARY_SUFFIX, f".{folder.name}.", folder.parent))
    made, replaced = temporary / "made", temporary / "replaced"
    try:
        made.mkdir()
        yield made
        umask = os.umask(0)
        os.umask(umask)
        for file in made.iterdir():
            file.chmod(0o666 & ~umask)  # what the user's new files get, whoever wrote these
            with open(file, "rb+") as written:
                os.fsync(written.fileno())
        if folder.exists():
            folder.rename(replaced)
        made.rename(folder)
        flush_folder(folder.parent)
    finally:
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
        shutil.rmtree(temporary, ignore_errors=True)


_CANNOT_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EBADF, errno.EISDIR)


def flush_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the system can promise that.

    Raises:
        OSError: the disk failed or is full: what was renamed may be lost.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:  # Windows can't open folders; network file systems may refuse
        if error.errno not in _CANNOT_FLUSH:
            raise
