"""Destinations: where the prefixes of a run go, a file or a version for each, and checkpoints.

Of `foreword train --by owner` each owner has one, of `foreword compile --by document` each document; a single
document's is the only one.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from foreword.errors import BadPrefix, CannotWrite, UnknownPrefix, UsageError

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

    def place(self, owner: str) -> str:
        """Where the prefix goes, in words."""
        return str(self.path(owner))

    def named(self, name: str) -> Prefix:
        """The prefix that the user calls so: a file. Raises as `Prefix.load`."""
        from foreword.prefix import Prefix

        return Prefix.load(Path(name))

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

    def newest(self, owner: str) -> tuple[Prefix, str] | None:
        """The prefix that is there and where; None without one, and without one that can be read."""
        from foreword.prefix import Prefix

        path = self.path(owner)
        with contextlib.suppress(BadPrefix):
            return (Prefix.load(path), str(path)) if path.exists() else None
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


class File(Folder):
    """The file of a single prefix, whatever its entry is called."""

    def __init__(self, file: Path, run: Path) -> None:
        super().__init__(file.parent, run)
        self._file = file

    def check(self, owners: Iterable[str]) -> None:
        """Nothing: names of entries are not used, and the folder must be there."""

    def path(self, owner: str) -> Path:
        """The file."""
        return self._file

    def checkpoints(self, owner: str) -> Path:
        """As `Folder.checkpoints`."""
        return self._runs


class Stored:
    """A store, in which each owner's prefix is a version of OWNER/NAME, each document's of OWNER/DOCUMENT."""

    def __init__(self, store: PrefixStore, *, owner: str | None = None, name: str | None = None) -> None:
        """With `name`, entries are owners, who each have a prefix of that name; with `owner`, documents."""
        self._store = store
        self._owner = owner
        self._name = name

    def check(self, entries: Iterable[str]) -> None:
        """As `Folder.check`; makes nothing."""
        from foreword.store.names import parse_name

        for entry in entries:
            if "/" in entry and self._owner is None:  # else the name would be said to be wrong, not the owner
                raise UsageError(f"the owner {entry!r} has a / in the name, which no store takes; rename it")
            owner, _ = parse_name(self._full_name(entry))
            self._store.checkpoint_folder(owner)

    def place(self, entry: str) -> str:
        """As `Folder.place`."""
        return f"a version of {self._full_name(entry)}"

    def named(self, name: str) -> Prefix:
        """As `Folder.named`: a version in the store, owner and name with a number or label.

        Raises:
            BadName, UnknownPrefix, BadPrefix: as `PrefixStore.get`.
        """
        return self._store.get(name)

    def checkpoints(self, entry: str) -> Path:
        """As `Folder.checkpoints`: where `forget` finds them."""
        from foreword.store.names import folder_name

        owner, name = self._full_name(entry).split("/")
        return self._store.checkpoint_folder(owner) / folder_name(name)

    def find(self, entry: str, digest: str) -> str | None:
        """As `Folder.find`."""
        with contextlib.suppress(UnknownPrefix):
            return self._store.describe(f"{self._full_name(entry)}@sha256:{digest}").version.reference
        return None

    def newest(self, entry: str) -> tuple[Prefix, str] | None:
        """As `Folder.newest`: the newest version."""
        with contextlib.suppress(UnknownPrefix):
            reference = self._store.describe(self._full_name(entry)).version.reference
            return self._store.get(reference), reference
        return None

    def taken(self, entry: str) -> Path | None:
        """As `Folder.taken`: never, each put is a version of its own."""
        return None

    def write(self, entry: str, prefix: Prefix, *, overwrite: bool) -> str:
        """As `Folder.write`."""
        return self._store.put(self._full_name(entry), prefix).reference

    def _full_name(self, entry: str) -> str:
        return f"{self._owner or entry}/{self._name or entry}"


Destination = Folder | Stored
"""Where the prefixes of a run with many owners or documents go."""


@contextlib.contextmanager
def destination(
    out: Path | None,
    place: str,
    blobs: str | None,
    checkpoint_dir: Path | None,
    *,
    owner: str | None = None,
    name: str | None = None,
    what: str = "owner",
    file: bool = False,
) -> Iterator[Destination]:
    """The destination that the options name: the folder `out`, or else a store.

    Args:
        owner, name: as of `Stored`, one of them.
        what: has a prefix each, for messages.
        file: `out` is the file of a single prefix.

    Raises:
        UsageError: a folder for checkpoints that belongs to no database, or the lack of one.
        UnknownStore, StoreUnavailable, CannotWrite: see `PrefixStore`.
    """
    if out is not None:
        run = checkpoint_dir or run_folder(out)
        yield File(out, run) if file else Folder(out, run, what)
        return
    from foreword.store import PrefixStore
    from foreword.store.names import parse_name

    parse_name(f"{owner or 'owner'}/{name or 'name'}")
    database = "://" in place
    if checkpoint_dir is not None and not database:
        raise UsageError(
            f"--checkpoint-dir is given, but the store {place} keeps checkpoints itself, where "
            "`foreword store forget` finds them; leave it out"
        )
    if checkpoint_dir is None and database:
        raise UsageError("a store in a database has no folder for checkpoints; name one: --checkpoint-dir")
    with PrefixStore(place, blobs=blobs, checkpoints=checkpoint_dir) as store:
        yield Stored(store, owner=owner, name=name)
