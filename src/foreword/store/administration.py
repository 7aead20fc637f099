"""Administration: sharing, keys, and work on whole owners and the whole store.

The second half of `PrefixStore`; the first, about single prefixes, stands in `store.py`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from foreword.errors import UsageError
from foreword.store import access, api_keys, audit, forget, maintenance, names, transfer, verify
from foreword.store.access import Caller, Role
from foreword.store.api_keys import KeyRecord, NewKey
from foreword.store.audit import AuditEntry
from foreword.store.blobs import Blobs
from foreword.store.cache import Cache
from foreword.store.database import Catalogue


class Administration:
    """What `PrefixStore` can do beyond single prefixes; it fills in the attributes."""

    _catalogue: Catalogue
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
