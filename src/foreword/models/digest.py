"""SHA-256 of files, compared with what the catalogue expects."""

from __future__ import annotations

import hashlib
from pathlib import Path

from foreword.errors import ChecksumMismatch


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
