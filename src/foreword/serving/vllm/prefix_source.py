"""Where a vLLM worker reads prefixes from, by digest, and checks them against it: a folder or the store."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from foreword.errors import AlteredBlob, UnknownPrefix, UsageError
from foreword.prefix import Prefix

STORE, BLOBS = "FOREWORD_STORE", "FOREWORD_STORE_BLOBS"
"""Environment variables: a database's URL can hold a password, which is not for a command line."""


class Source(Protocol):
    """Where prefixes are."""

    def get(self, digest: str) -> Prefix:
        """The prefix with that digest.

        Raises:
            UnknownPrefix: there is none.
            AlteredBlob: its file is no longer what it was; it is never returned.
            ForewordError: it can't be read; says why.
        """
        ...


class FolderSource:
    """Files `<digest>.prefix` in one folder."""

    def __init__(self, folder: Path) -> None:
        """Raises UsageError when there is no such folder."""
        if not folder.is_dir():
            raise UsageError(f"{folder} is no folder; expected one with files <digest>.prefix")
        self._folder = folder

    def get(self, digest: str) -> Prefix:
        """See `Source`."""
        _check(digest)
        path = self._folder / f"{digest}.prefix"
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise UnknownPrefix(f"{path} is not there; put the prefix file under its digest") from error
        actual = hashlib.sha256(content).hexdigest()
        if actual != digest:
            raise AlteredBlob(
                f"{path} has SHA-256 {actual[:12]}..., expected its name; it is not used. Fetch it again"
            )
        return Prefix.from_bytes(content, where=str(path))


class StoreSource:
    """The store; whichever of its versions has the digest."""

    def __init__(self, place: str, blobs: str | None) -> None:
        """Raises as `PrefixStore`."""
        from foreword.store import PrefixStore

        # Without a memory tier: a worker keeps what it has read in the form in which it writes it.
        self._store = PrefixStore(place, blobs=blobs, create=False, memory_bytes=0)

    def get(self, digest: str) -> Prefix:
        """See `Source`."""
        import sqlalchemy

        from foreword.store.schema import version

        _check(digest)
        query = sqlalchemy.select(version.c.owner, version.c.name, version.c.number)
        query = query.where(version.c.digest == digest).limit(1)
        row = self._store.catalogue.read(lambda connection: connection.execute(query).first())
        if row is None:
            raise UnknownPrefix(f"no version in the store has the digest {digest[:12]}...; it was deleted")
        return self._store.get(f"{row.owner}/{row.name}@{row.number}")


def open_source(extra: Mapping[str, Any], environment: Mapping[str, str]) -> Source:
    """The folder that the connector's settings name, else the store that the environment names.

    Raises:
        UsageError: neither.
        Whatever `PrefixStore` raises.
    """
    if folder := extra.get("folder"):
        return FolderSource(Path(folder))
    if place := environment.get(STORE):
        return StoreSource(place, environment.get(BLOBS) or None)
    raise UsageError(
        f"no place to load prefixes from: set {STORE} in vLLM's environment, or folder in "
        "kv_connector_extra_config"
    )


def _check(digest: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise UnknownPrefix(f"{digest[:80]!r} is no digest; expected 64 hexadecimal digits")
