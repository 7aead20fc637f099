"""Destinations: where the prefixes of a run go, a file or a version for each owner, and checkpoints."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from foreword.errors import CannotWrite, UnknownPrefix, UsageError

if TYPE_CHECKING:
    from foreword.prefix import Prefix
    from foreword.store import PrefixStore

LONGEST_FILE_NAME = 200
"""Bytes; file systems take 255, and temporary files have longer names."""


def run_folder(out: Path) -> Path:
    """Where a run keeps its checkpoints when nothing is said: beside what it writes."""
    return out.with_suffix(".run") if out.suffix == ".prefix" else out.with_name(f"{out.name}.run")


class Folder:
    """A folder with a prefix file of each owner, or of each document."""

    def __init__(self, folder: Path, runs: Path, what: str = "owner") -> None:
        self._folder = folder
        self._runs = runs
        self._what = what

    def check(self, owners: Iterable[str]) -> None:
        """Make the folder; refuse owners whose names it can't take, before the work.

        Raises:
            UsageError: which owner, and why.
            CannotWrite: no right, or no such folder.
        """
        seen: dict[str, str] = {}
        for owner in owners:
            file = self.path(owner).name
            if len(file) > LONGEST_FILE_NAME:
                raise UsageError(
                    f"the {self._what} {owner[:40]!r}… has too long a name for a file; expected at most "
                    f"{LONGEST_FILE_NAME} characters in {file[:40]}…. Give the {self._what} a shorter one"
                )
            if (other := seen.setdefault(file.casefold(), owner)) != owner:
                raise UsageError(
                    f"the {self._what}s {other!r} and {owner!r} differ only in capitals, and on many disks "
                    "so would not their files; rename one, or put the prefixes into a store"
                )
        try:
            self._folder.mkdir(exist_ok=True)
        except OSError as error:
            raise CannotWrite(
                f"the folder {self._folder} can't be made: {error.strerror}; choose another for --out"
            ) from error

    def path(self, owner: str) -> Path:
        """The owner's file: the name as in a URL, so that none points elsewhere."""
        name = quote(owner, safe="")
        return self._folder / f"{'%2E' + name[1:] if name.startswith('.') else name}.prefix"

    def checkpoints(self, owner: str) -> Path:
        """The folder of the owner's checkpoints, log and curves."""
        from foreword.training.train_many import owner_folder

        return owner_folder(self._runs, owner)

    def find(self, owner: str, digest: str) -> str | None:
        """Where the prefix with this digest is; None if it is not there, or was altered since."""
        path = self.path(owner)
        with contextlib.suppress(FileNotFoundError):
            return str(path) if hashlib.sha256(path.read_bytes()).hexdigest() == digest else None
        return None

    def taken(self, owner: str) -> Path | None:
        """The file that would be replaced, or None."""
        path = self.path(owner)
        return path if path.exists() else None

    def write(self, owner: str, prefix: Prefix, *, overwrite: bool) -> str:
        """Keep the prefix and say where it is. Raises as `Prefix.save`."""
        path = self.path(owner)
        prefix.save(path, overwrite=overwrite)
        return str(path)


class Stored:
    """A store, in which each owner's prefix is a version of OWNER/NAME."""

    def __init__(self, store: PrefixStore, name: str) -> None:
        self._store = store
        self._name = name

    def check(self, owners: Iterable[str]) -> None:
        """As `Folder.check`; makes nothing."""
        from foreword.store.names import parse_name

        for owner in owners:
            if "/" in owner:  # else the name would be said to be wrong, not the owner
                raise UsageError(f"the owner {owner!r} has a / in the name, which no store takes; rename it")
            parse_name(f"{owner}/{self._name}")
            self._store.checkpoint_folder(owner)

    def checkpoints(self, owner: str) -> Path:
        """As `Folder.checkpoints`: where `forget` finds them."""
        from foreword.store.names import folder_name

        return self._store.checkpoint_folder(owner) / folder_name(self._name)

    def find(self, owner: str, digest: str) -> str | None:
        """As `Folder.find`."""
        with contextlib.suppress(UnknownPrefix):
            return self._store.describe(f"{owner}/{self._name}@sha256:{digest}").version.reference
        return None

    def taken(self, owner: str) -> Path | None:
        """As `Folder.taken`: never, each put is a version of its own."""
        return None

    def write(self, owner: str, prefix: Prefix, *, overwrite: bool) -> str:
        """As `Folder.write`."""
        return self._store.put(f"{owner}/{self._name}", prefix).reference


Destination = Folder | Stored
"""Where the prefixes of a run with many owners go."""


@contextlib.contextmanager
def destination(
    out: Path | None, name: str | None, place: str, blobs: str | None, checkpoint_dir: Path | None
) -> Iterator[Destination]:
    """The destination that the options name: a folder, or else a store.

    Raises:
        UsageError: a folder for checkpoints that belongs to no database, or the lack of one.
        UnknownStore, StoreUnavailable, CannotWrite: see `PrefixStore`.
    """
    if out is not None:
        yield Folder(out, checkpoint_dir or run_folder(out))
        return
    assert name is not None
    from foreword.store.names import parse_name

    parse_name(f"owner/{name}")
    with opened_store(place, blobs, checkpoint_dir) as store:
        yield Stored(store, name)


@contextlib.contextmanager
def opened_store(place: str, blobs: str | None, checkpoint_dir: Path | None) -> Iterator[PrefixStore]:
    """A store that has a folder for checkpoints.

    Raises:
        As `destination`.
    """
    from foreword.store import PrefixStore

    database = "://" in place
    if checkpoint_dir is not None and not database:
        raise UsageError(
            f"--checkpoint-dir is given, but the store {place} keeps checkpoints itself, where "
            "`foreword store forget` finds them; leave it out"
        )
    if checkpoint_dir is None and database:
        raise UsageError("a store in a database has no folder for checkpoints; name one: --checkpoint-dir")
    with PrefixStore(place, blobs=blobs, checkpoints=checkpoint_dir) as store:
        yield store
