"""A store on SQLite, PostgreSQL or in a bucket, that is put back to its beginning in milliseconds."""

from __future__ import annotations

import functools
import hashlib
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import sqlalchemy

from faults.scenarios import World
from foreword.errors import UnknownStore
from foreword.files import TEMPORARY_SUFFIX
from foreword.prefix import Prefix
from foreword.store import PrefixStore, schema
from foreword.store.blobs import read_checked
from foreword.store.database import Database

OTHERS = "others"
"""The owner in whose name things happen meanwhile."""


class StoreWorld(World):
    """A store in a folder of its own.

    Args:
        folder: everything that is watched lies below it.
        database: the URL of an empty PostgreSQL database; None: SQLite.
        bucket: the files lie in a bucket, with copies on the disk.
        empty: not even the store is there at first.
    """

    def __init__(
        self, folder: Path, database: str | None = None, *, bucket: bool = False, empty: bool = False
    ) -> None:
        self.folder = folder / "world"
        self._template = folder / "template"
        self._database = database
        self._empty = empty
        place = self.folder / "store" if database is None else database
        self.arguments: dict[str, Any] = {"place": place, "checkpoints": self.folder / "checkpoints"}
        if database is not None or bucket:
            self.arguments["blobs"] = self.folder / "blobs"
        if bucket:
            (folder / "bucket").mkdir()
            self.arguments["blobs"] = f"local://{self.folder}/bucket"
            self.arguments["disk_cache"] = self.folder / "cache"
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._opened: PrefixStore | None = None

    # -- for the operations ----------------------------------------------------------------------

    @property
    def store(self) -> PrefixStore:
        """The store, opened once."""
        if self._opened is None:
            self._opened = PrefixStore(**self.arguments)
        return self._opened

    def close(self) -> None:
        """See `World.close`."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def setup(self, store: PrefixStore) -> None:
        """What is in the store at first."""

    # -- for the harness -------------------------------------------------------------------------

    def prepare(self) -> None:
        """See `World.prepare`."""
        self.folder.mkdir()
        if not self._empty:
            with PrefixStore(**self.arguments) as store:
                self.setup(store)
                if self._database is not None:
                    self._rows = {
                        table.name: [
                            dict(row._mapping) for row in store.database.rows(sqlalchemy.select(table))
                        ]
                        for table in schema.metadata.sorted_tables
                    }
        shutil.move(self.folder, self._template)

    def reset(self) -> None:
        """See `World.reset`."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self._template, self.folder)
        if self._database is None:
            return
        engine = Database(self._database).engine
        with engine.begin() as connection:
            if self._empty:
                connection.exec_driver_sql("DROP SCHEMA public CASCADE")
                connection.exec_driver_sql("CREATE SCHEMA public")
            else:
                for table in reversed(schema.metadata.sorted_tables):
                    connection.execute(table.delete())
                for table in schema.metadata.sorted_tables:
                    if self._rows[table.name]:
                        connection.execute(table.insert(), self._rows[table.name])
        engine.dispose()

    def fresh(self) -> StoreWorld:
        """See `World.fresh`."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, _opened=None)
        return other

    def state(self) -> dict[str, Any]:
        """See `World.state`: everything that is listed, each prefix by the digest of what can be read of it."""
        try:
            store = PrefixStore(**self.arguments, create=False)
        except UnknownStore:
            return {"versions": "no store"}
        with store:
            return self.seen(store)

    def seen(self, store: PrefixStore) -> dict[str, Any]:
        """What `state` is made of."""
        versions, others = {}, {}
        keys = {row.digest: row.key for row in rows_of(store, "blob")}
        for row in rows_of(store, "version"):
            mine = others if row.owner == OTHERS else versions
            mine[f"{row.owner}/{row.name}@{row.number}"] = self.content(store, keys[row.digest], row.digest)
        audit = Counter(f"{r.action} {r.owner}" for r in rows_of(store, "audit") if r.owner != OTHERS)
        return {
            "versions": versions,
            "others": others,
            "latest": sorted(
                [r.owner, r.name, r.latest, bool(r.public)]
                for r in rows_of(store, "prefix")
                if r.owner != OTHERS and r.latest is not None
            ),
            "labels": sorted([r.owner, r.name, r.label, r.number] for r in rows_of(store, "label")),
            "shares": sorted([r.owner, r.name, r.grantee] for r in rows_of(store, "share")),
            "keys": sorted([r.owner or "", r.role, r.revoked is not None] for r in rows_of(store, "api_key")),
            "uploads": sorted(
                [r.owner, r.filename, hashlib.sha256(r.content).hexdigest()[:12]]
                for r in rows_of(store, "upload")
            ),
            "jobs": sorted([r.owner, r.name, r.state] for r in rows_of(store, "job")),
            "audit": dict(sorted(audit.items())),
            "usage": sorted(
                [r.owner, r.requests, r.prompt_tokens, r.training_steps, r.trained_tokens]
                for r in rows_of(store, "usage")
            ),
            "faults": sorted([r.digest[:8], r.fault] for r in rows_of(store, "blob") if r.fault is not None),
        }

    def content(self, store: PrefixStore, key: str, digest: str) -> str:
        """What can be read of a file; raises where it can't be read, or is another one."""
        return _tensors_digest(read_checked(store._blobs, key, digest))

    def check_clean(self) -> list[str]:
        """See `World.check_clean`: garbage collection must leave only files that versions name."""
        left = []
        with PrefixStore(**self.arguments) as store:
            store.collect_garbage(grace=0)
            named = {row.digest for row in rows_of(store, "version")}
            rows = rows_of(store, "blob")
            left += [
                f"a row of {row.digest[:8]} that no version names" for row in rows if row.digest not in named
            ]
            left += [f"a row of {row.digest[:8]} that is not ready" for row in rows if not row.ready]
            keys = {row.key for row in rows}
            left += [f"the file {each.key}" for each in store._blobs.each() if each.key not in keys]
            left += [f"{problem}" for problem in store.verify().problems]
        # A cache drops them like its other files, when it is full or their owner is forgotten.
        temporary = (path.relative_to(self.folder) for path in self.folder.rglob(f"*{TEMPORARY_SUFFIX}*"))
        left += [f"the file {path}" for path in temporary if path.parts[0] != "cache"]
        return left


def rows_of(store: PrefixStore, table: str) -> Any:
    """Every row of a table."""
    # As text: SQLAlchemy would compile a query anew for each of the thousands of stores that are opened.
    return store.database.read(lambda connection: connection.exec_driver_sql(f"SELECT * FROM {table}").all())


@functools.cache
def _tensors_digest(content: bytes) -> str:
    """The digest of what a prefix file holds, whenever it was made."""
    tensors = Prefix.from_bytes(content).tensors
    return hashlib.sha256(b"".join(each.numpy().tobytes() for each in tensors.values())).hexdigest()[:12]
