"""PrefixStore: named, versioned prefixes of many owners, as callers use them.

One class with a method for each thing that a caller can do. What a method does stands in the file that it
calls: versions.py, listing.py, access.py, api_keys.py, equivalence.py, transfer.py, maintenance.py,
tasks.py, usage.py, forget.py.
"""

from __future__ import annotations

import copy as copying
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy

from foreword.errors import MissingBlob, UsageError
from foreword.store import (
    access,
    api_keys,
    equivalence,
    forget,
    listing,
    maintenance,
    names,
    schema,
    tasks,
    transfer,
    usage,
    versions,
)
from foreword.store.access import ADMINISTRATOR, AuditEntry, Caller, Role
from foreword.store.api_keys import KeyRecord, NewKey
from foreword.store.blobs import Blobs, check_marker, open_blobs, read_checked
from foreword.store.cache import Cache, DiskCache, MemoryCache
from foreword.store.database import Database, find_database
from foreword.store.leases import deposit
from foreword.store.listing import Page
from foreword.store.record import Description, Version, columns_of
from foreword.store.schema import setting
from foreword.validation import checks_methods, fitting

if TYPE_CHECKING:
    from foreword.prefix import Prefix

T = TypeVar("T")

MEMORY_BYTES = 256 << 20
DISK_BYTES = 4 << 30


@checks_methods
class PrefixStore:
    """Named, versioned prefixes of many owners.

    Calls act as local administrator; `as_owner` and `as_key` return the same store as others see it. A server
    keeps more than prefixes in `database`, and measures the two tiers of `cache`.

    Args:
        place: a folder (database and files inside it), or the URL of a database.
        blobs: where the files go when `place` is a database: a folder, or a URL such as
            `s3://bucket/folder`.
        create: make the store when there is none; else that is an error.
        memory_bytes: limit of the prefixes kept in memory.
        disk_bytes: limit of the files kept on this disk, when `blobs` is a bucket.
        disk_cache: folder for those; the user's cache folder when left out.
        checkpoints: folder below which each owner's training checkpoints lie.
        blob_options: handed to fsspec as they are, e.g. {"endpoint_url": ...}.

    Raises:
        UsageError: arguments that do not go together.
        UnknownStore: no store there and `create` is false, or the blobs are another store's.
        OutdatedCatalogue, UnsupportedCatalogue: made by an older or newer release.
        StoreUnavailable, CannotWrite: the database or the storage does not answer, or refuses.
    """

    def __init__(
        self,
        place: str | Path,
        *,
        blobs: str | Path | None = None,
        create: bool = True,
        memory_bytes: int = MEMORY_BYTES,
        disk_bytes: int = DISK_BYTES,
        disk_cache: str | Path | None = None,
        checkpoints: str | Path | None = None,
        blob_options: dict[str, Any] | None = None,
    ) -> None:
        url, blobs_url, folder = find_database(place, blobs, create=create)
        self._caller = ADMINISTRATOR
        self.database = Database(url)
        schema.prepare(self.database, create=create)
        self._blobs: Blobs = open_blobs(blobs_url, blob_options)
        rows = self.database.rows(sqlalchemy.select(setting.c.name, setting.c.value))
        settings = {row.name: row.value for row in rows}
        self._identifier: str = settings["store"]
        check_marker(self._blobs, self._identifier)
        disk = None
        if disk_cache is not None or "://" in blobs_url:
            from foreword.models.cache_dir import cache_folder

            folders = Path(disk_cache) if disk_cache is not None else cache_folder() / "prefixes"
            disk = DiskCache(folders / self._identifier, disk_bytes)
        self.cache = Cache(MemoryCache(memory_bytes), disk, int(settings["forgotten"]))
        self._checkpoints = (
            Path(checkpoints) if checkpoints is not None else folder and folder / "checkpoints"
        )

    # -- who calls -----------------------------------------------------------------------------

    @property
    def caller(self) -> Caller:
        """On whose behalf calls of this view are made."""
        return self._caller

    @property
    def blobs(self) -> Blobs:
        """The files by key: of prefixes, and of checkpoints of jobs."""
        return self._blobs

    @property
    def catalogue(self) -> Database:
        """The old name of `database`."""
        return self.database

    def as_owner(self, owner: str, *, role: Role = "owner") -> PrefixStore:
        """This store as `owner` sees it: their own prefixes, shared and public ones.

        Raises:
            BadName: no owner can be called so.
            UsageError: a role that no owner has.
        """
        if role not in ("owner", "reader"):
            raise UsageError(f"role is {role!r}; expected owner or reader")
        return self.as_caller(Caller(names.check_owner(owner), role))

    def as_key(self, secret: str) -> PrefixStore:
        """This store as the holder of an API key sees it.

        Raises:
            UnknownKey: malformed, never made, or revoked.
        """
        return self.as_caller(self.database.read(lambda c: api_keys.caller_of(c, secret)))

    def as_caller(self, caller: Caller) -> PrefixStore:
        """This store as a caller sees it whom somebody else has identified."""
        view = copying.copy(self)
        view._caller = caller
        return view

    # -- prefixes ------------------------------------------------------------------------------

    def put(
        self,
        name: str,
        prefix: Prefix | str | Path,
        *,
        limit: int | None = None,
        also: Callable[[sqlalchemy.Connection, Version], object] | None = None,
    ) -> Version:
        """Store a prefix, or a prefix file, as the next version of `owner/name`.

        On return it survives a power cut. A put of what is the latest version already returns
        that version, so it can be repeated when an answer was lost.

        Args:
            limit: bytes that the owner may store (see quota.py).
            also: does more in the transaction that lists the version, so that both happen or neither. What it
                raises is raised here, and nothing is listed. Where another writer is in the way, all of it
                is undone and done again.

        Raises:
            BadName: not `owner/name`.
            NotAllowed: the caller may not write there.
            UnknownKey: the caller's key was revoked meanwhile, or its owner forgotten.
            BadPrefix, CannotRead: the file is no prefix.
            StorageLimitExceeded, CannotWrite, StoreUnavailable: nothing is listed.
        """
        return self._put({name: prefix}, limit, also and (lambda made, added: also(made, added[0])))[0]

    def put_many(
        self, prefixes: Mapping[str, Prefix | str | Path], *, limit: int | None = None
    ) -> tuple[Version, ...]:
        """Store several prefixes at the price of few flushes of the disk: all, or none is listed.

        Args:
            limit: bytes that each owner may store.

        Raises: as `put`.
        """
        fitting("prefixes", prefixes, Mapping)
        return self._put(prefixes, limit, None)

    def _put(
        self,
        prefixes: Mapping[str, Prefix | str | Path],
        limit: int | None,
        also: Callable[[sqlalchemy.Connection, tuple[Version, ...]], object] | None,
    ) -> tuple[Version, ...]:
        places = [names.parse_name(name) for name in prefixes]
        for owner, _ in places:
            access.check_writes(self._caller, owner)
        values = [_loaded(prefix) for prefix in prefixes.values()]
        contents = {prefix.digest: prefix.to_bytes() for prefix in values}
        columns = {prefix.digest: columns_of(prefix) for prefix in values}
        entries = [(place, prefix.digest) for place, prefix in zip(places, values, strict=True)]

        def commit(connection: sqlalchemy.Connection) -> tuple[Version, ...]:
            added = {
                place: versions.add(connection, self._caller, *place, digest, columns[digest])
                for place, digest in sorted(entries)  # one order of locks for every writer
            }
            listed = tuple(added[place] for place in places)
            if also is not None:
                also(connection, listed)
            return listed

        owners: dict[str, set[str]] = {}
        for (owner, _), digest in entries:
            owners.setdefault(owner, set()).add(digest)
        return deposit(self.database, self._blobs, contents, owners, commit, limit=limit) if entries else ()

    def get(self, reference: str) -> Prefix:
        """The prefix that `owner/name`, `@3`, `@label` or `@sha256:<digest>` behind it means.

        The value may be shared with other callers of this process: its tensors are not to be changed.

        Raises:
            UnknownPrefix: absent, or not for this caller.
            AlteredBlob, MissingBlob: the stored file can't be trusted; it is never returned.
            StoreUnavailable: the database or the storage does not answer.
        """
        from foreword.prefix import Prefix

        parsed = names.parse(reference)
        missing = None
        while True:
            row = self._read(versions.locate, parsed)
            self.cache.settle(row.forgotten, self._forgotten_since)
            load = functools.partial(Prefix.from_bytes, where=f"{row.owner}/{row.name}@{row.number}")
            if (cached := self.cache.get(row.owner, row.digest, load)) is not None:
                return cached
            try:
                content = read_checked(self._blobs, row.key, row.digest)
            except MissingBlob:
                # Between the row and its file, the version may have been deleted and its file collected;
                # the database then names another key, or nothing. The same key again means a lost file.
                if row.key == missing:
                    raise
                missing = row.key
                continue
            prefix = load(content)
            self.cache.put(row.owner, row.digest, prefix, content, row.forgotten)
            return prefix

    def describe(self, reference: str) -> Description:
        """All that the database says of a version and its prefix. Raises UnknownPrefix as `get`."""
        return self._read(versions.describe, names.parse(reference), snapshot=True)

    def list(
        self,
        *,
        owner: str | None = None,
        name: str | None = None,
        label: str | None = None,
        base: str | None = None,
        limit: int = 100,
        after: str | None = None,
        facts: bool = True,
    ) -> Page:
        """A page of prefixes that the caller may see, in the order of their names.

        Args:
            name: only names that start with this.
            label: only those with this label; the labelled version is listed instead of the latest.
            limit: how many, up to 1000.
            after: `next` of the page before.
            facts: with what the files' headers say; without, `facts` is empty, and a page is as quick to
                read however long the headers are.

        Raises:
            UsageError: a limit out of range, or text that is no name.
        """
        chosen = listing.Filter(owner, name, label, base, facts)
        return self._read(listing.page, chosen, limit, after, snapshot=True)

    def each(self, **filters: Any) -> Iterator[Version]:
        """Every prefix, page after page; `filters` as for `list`."""
        after: str | None = None
        while True:
            page = self.list(**{"limit": listing.LARGEST_PAGE, **filters, "after": after})
            yield from page
            after = page.next
            if after is None:
                return

    def label(self, reference: str, label: str) -> Version:
        """Point `label` at a version, away from where it pointed before.

        Raises:
            UnknownPrefix, NotAllowed, BadName.
        """
        names.check_label(label)
        return self._write(versions.set_label, names.parse(reference), label)

    def unlabel(self, name: str, label: str) -> None:
        """Remove a label; the version stays.

        Raises:
            UnknownPrefix: no such prefix or label. NotAllowed, BadName.
        """
        names.check_label(label)
        self._write(versions.drop_label, *names.parse_name(name), label)

    def copy(self, source: str, destination: str) -> Version:
        """Make the next version of `destination` from a version the caller may read.

        Raises:
            UnknownPrefix, NotAllowed, BadName.
        """
        place = names.parse_name(destination)
        return self._write(versions.copy, names.parse(source), *place)

    def delete(self, reference: str, *, all_versions: bool = False) -> tuple[str, ...]:
        """Remove one version, or with `all_versions` every version; returns what is gone.

        Labels on it go too, version numbers are not given again, and the file goes with the next
        garbage collection unless another version names it.

        Raises:
            UsageError: no version named, and not all of them meant; or both.
            UnknownPrefix, NotAllowed, BadName.
        """
        parsed = names.parse(reference)
        if ("@" in reference) == all_versions:
            raise UsageError(
                f"which versions of {parsed.owner}/{parsed.name} to delete is not said, or said twice",
                advice="name one, as in owner/name@3, or give all_versions=True with a name alone",
                remedy="which versions",
            )
        return self._write(versions.remove, parsed, all_versions)

    # -- sharing, keys, audit ------------------------------------------------------------------

    def share(self, name: str, grantee: str) -> None:
        """Let another owner read a prefix. Raises UnknownPrefix, NotAllowed, BadName."""
        self._write(access.grant, *names.parse_name(name), grantee)

    def unshare(self, name: str, grantee: str) -> None:
        """Take that back. Raises UnknownPrefix, NotAllowed, BadName."""
        self._write(access.withdraw, *names.parse_name(name), grantee)

    def publish(self, name: str, *, public: bool = True) -> None:
        """Let everybody read a prefix, or no longer. Raises UnknownPrefix, NotAllowed, BadName."""
        self._write(access.publish, *names.parse_name(name), public)

    def create_key(self, owner: str | None, role: Role, *, note: str | None = None) -> NewKey:
        """Make an API key; its secret is in the answer and nowhere else.

        Raises:
            NotAllowed: the caller is no administrator.
            UsageError: an unknown role, or role and owner that do not go together.
        """
        return self._write(api_keys.create, owner, role, note)

    def list_keys(self, owner: str | None = None) -> tuple[KeyRecord, ...]:
        """API keys, without their secrets. Raises NotAllowed for other owners' keys."""
        return self._read(api_keys.listed, owner)

    def revoke_key(self, identifier: str) -> KeyRecord:
        """Refuse a key from now on. Raises UnknownKey, NotAllowed."""
        return self._write(api_keys.revoke, identifier)

    def audit(
        self, owner: str | None = None, *, limit: int = 100, before: int | None = None
    ) -> tuple[AuditEntry, ...]:
        """The newest entries of the audit table; owners see what was done to their own prefixes.

        Raises:
            NotAllowed: all entries, for those who are no administrators.
            UnknownPrefix: another owner's.
        """
        access.check_scope(self._caller, owner, "read the whole audit table")
        return self.database.read(lambda connection: access.entries(connection, owner, limit, before))

    def usage(
        self,
        owner: str | None = None,
        *,
        start: str | None = None,
        end: str | None = None,
        limit: int = usage.LARGEST_PAGE,
        after: str | None = None,
    ) -> tuple[usage.Usage, ...]:
        """What each owner used, by day, oldest first; owners see their own.

        Args:
            start, end: first and last day, UTC, such as "2026-01-31".
            limit: how many rows, up to 1000.
            after: day/owner of the last row of the page before.

        Raises:
            NotAllowed: of all owners, for those who are no administrators.
            UnknownPrefix: another owner's.
            UsageError: a day or limit out of range.
        """
        return self._read(usage.listed, owner, start, end, limit, after)

    # -- bases that prefixes of another run on -------------------------------------------------

    def declare_equivalent(
        self,
        trained: str,
        other: str,
        *,
        loss_difference: float,
        by: str | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> equivalence.Equivalence:
        """Declare that prefixes trained for one base run on another, too; `foreword store equate` measures.

        Args:
            trained, other: fingerprints of the two bases.
            loss_difference: mean loss per target token on `other` less that on `trained`, in nats.
            by: who declares it; the caller when left out.
            facts: what was measured; plain data.

        Raises:
            NotAllowed: the caller is no administrator.
            UsageError: no fingerprints, or no finite number.
        """
        return self._write(equivalence.declare, trained, other, loss_difference, by, facts or {})

    def withdraw_equivalent(self, trained: str, other: str) -> None:
        """Take that back. Raises NotAllowed, and UsageError where it was not declared."""
        self._write(equivalence.withdraw, trained, other)

    def equivalences(self) -> tuple[equivalence.Equivalence, ...]:
        """Everything that was declared, oldest first."""
        return self.database.read(equivalence.listed)

    def equivalents(self, other: str) -> frozenset[str]:
        """Fingerprints of the bases whose prefixes were declared to run on the base `other`, too."""
        table = schema.equivalence
        rows = self.database.rows(sqlalchemy.select(table.c.trained).where(table.c.other == other))
        return frozenset(row.trained for row in rows)

    # -- a whole owner, the whole store --------------------------------------------------------

    def export_owner(self, owner: str, path: str | Path, *, overwrite: bool = False) -> transfer.Exported:
        """Write everything of an owner to one file.

        Raises:
            UnknownPrefix: no such owner for this caller.
            DamagedBlob, OutputExists, CannotWrite, StoreUnavailable: nothing is written.
        """
        return transfer.export(
            self.database, self._blobs, self._caller, owner, Path(path), overwrite=overwrite
        )

    def import_owner(self, path: str | Path, *, owner: str | None = None) -> transfer.Imported:
        """Add an export, private, to the owner it came from or to another: all of it, or nothing.

        Raises:
            CannotRead: the file is absent.
            BadArchive: it is no export, or was altered.
            PrefixExists: a name of it is there already.
            NotAllowed: the caller may not write there.
            CannotWrite, StoreUnavailable: nothing was added.
        """
        return transfer.import_owner(self.database, self._blobs, self._caller, Path(path), owner)

    def verify(self, owner: str | None = None) -> maintenance.Verification:
        """Read every file again and check its digest. Raises UnknownPrefix, NotAllowed, StoreUnavailable."""
        access.check_scope(self._caller, owner, "verify the whole store")
        return maintenance.verify(self.database, self._blobs, owner)

    def check_files(self, *, older_than: float, pause: Callable[[float], bool]) -> tasks.Checked:
        """Check some files that were not checked for so many seconds; see `tasks.check_files`.

        Raises NotAllowed, StoreUnavailable.
        """
        access.check_administrates(self._caller, "verify the whole store")
        return tasks.check_files(self.database, self._blobs, older_than=older_than, pause=pause)

    def collect_unnamed(self, *, grace: float) -> int:
        """The part of `collect_garbage` that lists no folder; how many files it removed. Raises alike."""
        access.check_administrates(self._caller, "collect garbage")
        return len(maintenance.collect_unnamed(self.database, self._blobs, grace))

    def collect_garbage(
        self, *, grace: float = maintenance.GRACE_SECONDS, dry_run: bool = False
    ) -> maintenance.Collected:
        """Remove files that no version has named for `grace` seconds.

        Raises NotAllowed, StoreUnavailable, and UsageError for a negative grace time.
        """
        access.check_administrates(self._caller, "collect garbage")
        return maintenance.collect(self.database, self._blobs, grace, dry_run=dry_run)

    def checkpoint_folder(self, owner: str) -> Path:
        """Where training keeps the checkpoints of an owner's prefixes, so that `forget` finds them.

        Raises:
            UsageError: this store was opened without a folder for checkpoints.
            UnknownPrefix: another owner's.
        """
        access.check_owns(self._caller, owner)
        return self._checkpoints_place() / names.folder_name(owner)

    def job_folder(self) -> Path:
        """Below it, training on this machine keeps the checkpoints of its jobs, a folder each.

        Without a folder for checkpoints, in the user's cache folder: the store has the newest of each.
        """
        if self._checkpoints is not None:
            return self._checkpoints / forget.JOBS
        from foreword.models.cache_dir import cache_folder

        return cache_folder() / "jobs" / self._identifier

    def forget(self, owner: str) -> forget.Forgotten:
        """Remove everything of an owner: versions, files, shares, keys, uploads, jobs, checkpoints, copies.

        Raises:
            NotAllowed: another owner, or a role that only reads.
            StoreUnavailable, CannotWrite: repeat the call.
        """
        access.check_writes(self._caller, names.check_owner(owner))
        folders = forget.checkpoint_folders(self.database, self._checkpoints, self.job_folder(), owner)
        removed = forget.forget_rows(self.database, self._blobs, self._caller, owner)
        cached = self.cache.drop(owner)
        return dataclasses.replace(removed, checkpoints=forget.remove_folders(folders), cached=cached)

    # -- the end, and inside -------------------------------------------------------------------

    def close(self) -> None:
        """Close the connections to the database."""
        self.database.close()

    def __enter__(self) -> PrefixStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"PrefixStore({self.database}, blobs={self._blobs}, as {self._caller})"

    def _read(self, work: Callable[..., T], *arguments: Any, snapshot: bool = False) -> T:
        """What `work` reads for this caller; with `snapshot`, all of it as of one moment."""
        return self.database.read(
            lambda connection: work(connection, self._caller, *arguments), snapshot=snapshot
        )

    def _write(self, work: Callable[..., T], *arguments: Any) -> T:
        """Let `work` change something for this caller, wholly or not at all."""
        return self.database.write(lambda connection: work(connection, self._caller, *arguments))

    def _forgotten_since(self, entry: int) -> tuple[str, ...]:
        return self.database.read(lambda connection: access.forgotten_since(connection, entry))

    def _checkpoints_place(self) -> Path:
        if self._checkpoints is None:
            raise UsageError("this store has no folder for checkpoints; open it with checkpoints=<folder>")
        return self._checkpoints


def _loaded(prefix: Prefix | str | Path) -> Prefix:
    from foreword.prefix import Prefix

    if isinstance(prefix, str | Path):
        return Prefix.load(prefix)
    if not isinstance(prefix, Prefix):
        raise UsageError(
            f"put was given {type(prefix).__name__}; expected a Prefix or the path of a prefix file"
        )
    return prefix
