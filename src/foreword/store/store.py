"""PrefixStore: the store as its callers see it.

Administration: sharing, keys, and work on whole owners and the whole store.

The second half of `PrefixStore`; the first, about single prefixes, stands in `store.py`.

Opening: from what a caller calls a store to its database, its files and its caches.
"""

from __future__ import annotations

import contextlib
import copy as copying
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy

from foreword.errors import CannotWrite, MissingBlob, UnknownStore, UsageError
from foreword.store import access, api_keys, forget, listing, maintenance, names, schema, transfer, versions
from foreword.store import access as audit
from foreword.store import maintenance as verify
from foreword.store.access import ADMINISTRATOR, AuditEntry, Caller, Role
from foreword.store.api_keys import KeyRecord, NewKey
from foreword.store.blobs import MARKER, Blobs, open_blobs, read_checked
from foreword.store.cache import Cache, DiskCache, MemoryCache
from foreword.store.database import Database
from foreword.store.leases import deposit
from foreword.store.listing import Page
from foreword.store.record import Description, Version, columns_of
from foreword.store.schema import setting

if TYPE_CHECKING:
    from foreword.prefix import Prefix


class Administration:
    """What `PrefixStore` can do beyond single prefixes; it fills in the attributes."""

    _catalogue: Database
    _blobs: Blobs
    _cache: Cache
    _caller: Caller
    _checkpoints: Path | None

    # -- sharing, keys, audit ------------------------------------------------------------------

    def share(self, name: str, grantee: str) -> None:
        """Let another owner read a prefix. Raises UnknownPrefix, NotAllowed, BadName."""
        access.grant(self._catalogue, self._caller, *names.parse_name(name), grantee)

    def unshare(self, name: str, grantee: str) -> None:
        """Take that back. Raises UnknownPrefix, NotAllowed, BadName."""
        access.withdraw(self._catalogue, self._caller, *names.parse_name(name), grantee)

    def publish(self, name: str, *, public: bool = True) -> None:
        """Let everybody read a prefix, or no longer. Raises UnknownPrefix, NotAllowed, BadName."""
        access.publish(self._catalogue, self._caller, *names.parse_name(name), public=public)

    def create_key(self, owner: str | None, role: Role, *, note: str | None = None) -> NewKey:
        """Make an API key; its secret is in the answer and nowhere else.

        Raises:
            NotAllowed: the caller is no administrator.
            UsageError: an unknown role, or role and owner that do not go together.
        """
        return api_keys.create(self._catalogue, self._caller, owner, role, note)

    def list_keys(self, owner: str | None = None) -> tuple[KeyRecord, ...]:
        """API keys, without their secrets. Raises NotAllowed for other owners' keys."""
        return self._catalogue.read(lambda connection: api_keys.listed(connection, self._caller, owner))

    def revoke_key(self, identifier: str) -> KeyRecord:
        """Refuse a key from now on. Raises UnknownKey, NotAllowed."""
        return api_keys.revoke(self._catalogue, self._caller, identifier)

    def audit(
        self, owner: str | None = None, *, limit: int = 100, before: int | None = None
    ) -> tuple[AuditEntry, ...]:
        """The newest entries of the audit table; owners see what was done to their own prefixes.

        Raises:
            NotAllowed: all entries, for those who are no administrators.
            UnknownPrefix: another owner's.
        """
        if owner is None:
            access.check_administrates(self._caller, "read the whole audit table")
        else:
            access.check_owns(self._caller, names.check_owner(owner))
        return self._catalogue.read(lambda connection: audit.entries(connection, owner, limit, before))

    # -- the whole store -----------------------------------------------------------------------

    def export_owner(self, owner: str, path: str | Path, *, overwrite: bool = False) -> transfer.Exported:
        """Write everything of an owner to one file.

        Raises:
            UnknownPrefix: no such owner for this caller.
            DamagedBlob, OutputExists, CannotWrite, StoreUnavailable: nothing is written.
        """
        names.check_owner(owner)
        return transfer.export(
            self._catalogue, self._blobs, self._caller, owner, Path(path), overwrite=overwrite
        )

    def import_owner(self, path: str | Path, *, owner: str | None = None) -> transfer.Imported:
        """Add an export, private, to the owner it came from or to another: all of it, or nothing.

        Raises:
            CannotRead, BadArchive, PrefixExists, NotAllowed, CannotWrite, StoreUnavailable.
        """
        return transfer.import_owner(self._catalogue, self._blobs, self._caller, Path(path), owner)

    def verify(self, owner: str | None = None) -> verify.Verification:
        """Read every file again and check its digest. Raises UnknownPrefix, NotAllowed, StoreUnavailable."""
        if owner is None:
            access.check_administrates(self._caller, "verify the whole store")
        else:
            access.check_owns(self._caller, names.check_owner(owner))
        return verify.verify(self._catalogue, self._blobs, owner)

    def collect_garbage(
        self, *, grace: float = maintenance.GRACE_SECONDS, dry_run: bool = False
    ) -> maintenance.Collected:
        """Remove files that no version has named for `grace` seconds. Raises NotAllowed, StoreUnavailable."""
        access.check_administrates(self._caller, "collect garbage")
        return maintenance.collect(self._catalogue, self._blobs, grace, dry_run=dry_run)

    def checkpoint_folder(self, owner: str) -> Path:
        """Where training keeps the checkpoints of an owner's prefixes, so that `forget` finds them.

        Raises:
            UsageError: this store was opened without a folder for checkpoints.
            UnknownPrefix: another owner's.
        """
        access.check_owns(self._caller, names.check_owner(owner))
        return self._checkpoints_place() / names.folder_name(owner)

    def job_folder(self) -> Path:
        """Below it, a server keeps the checkpoints of its jobs, a folder each.

        Raises:
            UsageError: this store was opened without a folder for checkpoints.
        """
        return self._checkpoints_place() / forget.JOBS

    def forget(self, owner: str) -> forget.Forgotten:
        """Remove everything of an owner: versions, files, shares, keys, uploads, jobs, checkpoints, copies.

        Raises:
            NotAllowed: another owner, or a role that only reads.
            StoreUnavailable, CannotWrite: repeat the call.
        """
        access.check_writes(self._caller, names.check_owner(owner))
        place = self._checkpoints
        folders = forget.job_folders(self._catalogue, place, owner) if place is not None else []
        removed = forget.forget_catalogue(self._catalogue, self._blobs, self._caller, owner)
        cached = self._cache.drop(owner)
        count = (
            forget.forget_folder(place, owner) + forget.remove_folders(folders) if place is not None else 0
        )
        return dataclasses.replace(removed, checkpoints=count, cached=cached)

    def _checkpoints_place(self) -> Path:
        if self._checkpoints is None:
            raise UsageError("this store has no folder for checkpoints; open it with checkpoints=<folder>")
        return self._checkpoints


# -- Opening: from what a caller calls a store to its database, its files and its caches -----------


CATALOGUE_FILE = "catalogue.sqlite"


def open_catalogue(place: str | Path) -> Database:
    """The catalogue of a store whose schema may be an older one, for migrating it.

    Raises:
        UnknownStore: there is none.
    """
    url, _, _ = places(place, "unused" if "://" in str(place) else None, create=False)
    catalogue = Database(url)
    if catalogue.read(schema.revision) is None:
        raise UnknownStore(f"{catalogue} holds no store to migrate; check the name")
    return catalogue


def places(
    place: str | Path, blobs: str | Path | None, *, create: bool
) -> tuple[str | sqlalchemy.URL, str, Path | None]:
    """URL of the catalogue, place of the blobs, and the store's folder if it is one.

    Raises:
        UsageError: a database without a place for the files.
        UnknownStore: no store in the folder and `create` is false.
        CannotWrite: the folder can't be made.
    """
    if "://" in str(place):
        if blobs is None:
            raise UsageError(
                "a store in a database needs a place for its files: blobs='s3://bucket/folder' or a folder"
            )
        return str(place), str(blobs), None
    folder = Path(place).expanduser()
    if create:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CannotWrite(
                f"the folder {folder} can't be made: {error.strerror}; choose another"
            ) from error
    elif not (folder / CATALOGUE_FILE).is_file():
        raise UnknownStore(f"{folder} holds no store; check the name, or put a prefix to make one")
    url = sqlalchemy.URL.create("sqlite", database=str(folder / CATALOGUE_FILE))
    return url, str(blobs if blobs is not None else folder / "blobs"), folder


def check_marker(blobs: Blobs, identity: str) -> None:
    """Refuse blobs of another store: two catalogues would collect each other's files as garbage.

    Raises:
        UnknownStore: they are another store's.
        CannotWrite, StoreUnavailable: fresh blobs could not be marked as this store's.
    """
    with contextlib.suppress(MissingBlob):
        found = blobs.read(MARKER).decode(errors="replace")
        if found != identity:
            raise UnknownStore(
                f"the files at {blobs} belong to another store; choose another place for this one's"
            )
        return
    blobs.write(MARKER, identity.encode())


def cache_folder(chosen: str | Path | None) -> Path:
    """Where files of remote stores are cached: below what was chosen, or in the user's cache folder."""
    if chosen is not None:
        return Path(chosen)
    from foreword.models.cache_dir import cache_folder as of_user

    return of_user() / "prefixes"


# -- PrefixStore: the store as its callers see it --------------------------------------------------


MEMORY_BYTES = 256 << 20
DISK_BYTES = 4 << 30


class PrefixStore(Administration):
    """Named, versioned prefixes of many owners.

    Calls act as local administrator; `as_owner` and `as_key` return the same store as others see it.

    Args:
        place: a folder (catalogue and files inside it), or the URL of a database.
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
        url, blobs_url, folder = places(place, blobs, create=create)
        self._caller = ADMINISTRATOR
        self._catalogue = Database(url)
        schema.prepare(self._catalogue, create=create)
        self._blobs: Blobs = open_blobs(blobs_url, blob_options)
        identity, epoch = self._settings()
        check_marker(self._blobs, identity)
        disk = None
        if disk_cache is not None or "://" in blobs_url:
            disk = DiskCache(cache_folder(disk_cache) / identity, disk_bytes)
        self._cache = Cache(MemoryCache(memory_bytes), disk, epoch)
        self._checkpoints = (
            Path(checkpoints) if checkpoints is not None else folder and folder / "checkpoints"
        )

    # -- who calls -----------------------------------------------------------------------------

    @property
    def caller(self) -> Caller:
        """On whose behalf calls of this view are made."""
        return self._caller

    @property
    def catalogue(self) -> Database:
        """The database, for what a server keeps in it beside prefixes."""
        return self._catalogue

    @property
    def cache(self) -> Cache:
        """Memory and disk tier, for a server's measurements."""
        return self._cache

    def as_owner(self, owner: str, *, role: Role = "owner") -> PrefixStore:
        """This store as `owner` sees it: their own prefixes, shared and public ones.

        Raises:
            BadName: no owner can be called so.
            UsageError: a role that no owner has.
        """
        if role not in ("owner", "reader"):
            raise UsageError(f"role is {role!r}; expected owner or reader")
        return self._view(Caller(names.check_owner(owner), role))

    def as_key(self, secret: str) -> PrefixStore:
        """This store as the holder of an API key sees it.

        Raises:
            UnknownKey: malformed, never made, or revoked.
        """
        return self._view(self._catalogue.read(lambda connection: api_keys.caller_of(connection, secret)))

    def as_caller(self, caller: Caller) -> PrefixStore:
        """This store as a caller sees it whom somebody else has identified."""
        return self._view(caller)

    # -- prefixes ------------------------------------------------------------------------------

    def put(self, name: str, prefix: Prefix | str | Path) -> Version:
        """Store a prefix, or a prefix file, as the next version of `owner/name`.

        On return it survives a power cut. A put of what is the latest version already returns
        that version, so it can be repeated when an answer was lost.

        Raises:
            BadName: not `owner/name`.
            NotAllowed: the caller may not write there.
            BadPrefix, CannotRead: the file is no prefix.
            CannotWrite, StoreUnavailable: nothing is listed.
        """
        return self.put_many({name: prefix})[0]

    def put_many(self, prefixes: Mapping[str, Prefix | str | Path]) -> tuple[Version, ...]:
        """Store several prefixes at the price of few flushes of the disk: all, or none is listed.

        Raises: as `put`.
        """
        places = [names.parse_name(name) for name in prefixes]
        for owner, _ in places:
            access.check_writes(self._caller, owner)
        values = [_loaded(prefix) for prefix in prefixes.values()]
        contents = {prefix.digest: prefix.to_bytes() for prefix in values}
        described = {prefix.digest: columns_of(prefix) for prefix in values}
        entries = [(place, prefix.digest) for place, prefix in zip(places, values, strict=True)]

        def commit(connection: sqlalchemy.Connection) -> tuple[Version, ...]:
            added = {
                (owner, name): versions.add(
                    self._catalogue, connection, self._caller, owner, name, digest, described[digest]
                )
                for (owner, name), digest in sorted(entries)  # one order of locks for every writer
            }
            return tuple(added[place] for place in places)

        return deposit(self._catalogue, self._blobs, contents, commit) if entries else ()

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
        tried = None
        while True:
            located = self._locate(parsed)
            row = located.row
            where = f"{row.owner}/{row.name}@{row.number}"
            load = functools.partial(Prefix.from_bytes, where=where)
            if (cached := self._cache.get(row.owner, row.digest, load)) is not None:
                return cached
            try:
                content = read_checked(self._blobs, row.key, row.digest)
            except MissingBlob:
                if row.key == tried:
                    raise
                tried = row.key  # look again: it may have been deleted and collected in between
                continue
            prefix = load(content)
            self._cache.put(row.owner, row.digest, prefix, content, located.forgotten)
            return prefix

    def describe(self, reference: str) -> Description:
        """All that the catalogue says of a version and its prefix.

        Raises:
            UnknownPrefix: absent, or not for this caller.
        """
        parsed = names.parse(reference)
        return self._catalogue.read(
            lambda connection: versions.describe(connection, self._caller, parsed), snapshot=True
        )

    def list(
        self,
        *,
        owner: str | None = None,
        name: str | None = None,
        label: str | None = None,
        base: str | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> Page:
        """A page of prefixes that the caller may see, in the order of their names.

        Args:
            owner: only this owner's.
            name: only names that start with this.
            label: only those with this label; the labelled version is listed instead of the latest.
            base: only those of this base model.
            limit: how many, up to 1000.
            after: `next` of the page before.

        Raises:
            UsageError: a limit out of range, or text that is no name.
        """
        chosen = listing.Filter(owner, name, label, base)
        return self._catalogue.read(
            lambda connection: listing.page(connection, self._caller, chosen, limit, after), snapshot=True
        )

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
        return versions.set_label(self._catalogue, self._caller, names.parse(reference), label)

    def unlabel(self, name: str, label: str) -> None:
        """Remove a label; the version stays.

        Raises:
            UnknownPrefix: no such prefix or label. NotAllowed, BadName.
        """
        names.check_label(label)
        versions.drop_label(self._catalogue, self._caller, *names.parse_name(name), label)

    def copy(self, source: str, destination: str) -> Version:
        """Make the next version of `destination` from a version the caller may read.

        Raises:
            UnknownPrefix, NotAllowed, BadName.
        """
        owner, name = names.parse_name(destination)
        return versions.copy(self._catalogue, self._caller, names.parse(source), owner, name)

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
                f"name the version to delete, as in {parsed.owner}/{parsed.name}@3, or ask for all versions "
                f"of {parsed.owner}/{parsed.name} (all_versions=True, --all)"
            )
        return versions.remove(self._catalogue, self._caller, parsed, every=all_versions)

    def close(self) -> None:
        """Close the connections to the database."""
        self._catalogue.close()

    def __enter__(self) -> PrefixStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"PrefixStore({self._catalogue}, blobs={self._blobs}, as {self._caller})"

    # -- inside --------------------------------------------------------------------------------

    def _view(self, caller: Caller) -> PrefixStore:
        view = copying.copy(self)
        view._caller = caller
        return view

    def _settings(self) -> tuple[str, int]:
        query = sqlalchemy.select(setting.c.name, setting.c.value)
        found = self._catalogue.read(lambda c: {row.name: row.value for row in c.execute(query)})
        return found["store"], int(found["forgotten"])

    def _locate(self, reference: names.Reference) -> versions.Located:
        located = self._catalogue.read(
            lambda connection: versions.locate(connection, self._caller, reference)
        )
        self._cache.settle(located.forgotten, self._forgotten_since)
        return located

    def _forgotten_since(self, entry: int) -> tuple[str, ...]:
        return self._catalogue.read(lambda connection: audit.forgotten_since(connection, entry))


def _loaded(prefix: Prefix | str | Path) -> Prefix:
    from foreword.prefix import Prefix

    if isinstance(prefix, str | Path):
        return Prefix.load(prefix)
    if not isinstance(prefix, Prefix):
        raise UsageError(
            f"put was given {type(prefix).__name__}; expected a Prefix or the path of a prefix file"
        )
    return prefix
