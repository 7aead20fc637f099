"""Database: SQLite or PostgreSQL, where it is, and how work on it begins, ends and fails.

It knows transactions and errors; what is read and written stands in the files beside it.

Writes take their lock at the start (BEGIN IMMEDIATE in SQLite, row locks in PostgreSQL), so two
writers wait for each other instead of failing at the end. Where PostgreSQL still has to break a circle of
waiting writers, the work runs again.
"""

from __future__ import annotations

import functools
import os
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy
from sqlalchemy import Connection, Engine, Row, Select, event, exc
from sqlalchemy.dialects import postgresql, sqlite

from foreword.errors import CannotWrite, StoreUnavailable, UnknownStore, UsageError

T = TypeVar("T")

FILE = "catalogue.sqlite"
"""The database of a store in a folder."""

ATTEMPTS = 8
WAIT_SECONDS = 60.0
"""How long a SQLite writer waits for the others; PostgreSQL has no such limit."""

# PostgreSQL's own codes (appendix A of its manual).
_RETRY = {"40001", "40P01"}
_FULL = {"53100"}
_READ_ONLY = {"25006", "42501"}


def find_database(
    place: str | Path, blobs: str | Path | None, *, create: bool
) -> tuple[str | sqlalchemy.URL, str, Path | None]:
    """Where a store is: the URL of its database, the place of its files, and its folder if it is in one.

    Args:
        place: a folder, which is made where `create` says so, or the URL of a database.
        blobs: where the files go; None: into the folder.

    Raises:
        UsageError: a database without a place for the files.
        UnknownStore: no store in the folder and `create` is false.
        CannotWrite: the folder can't be made.
    """
    if "://" in str(place):
        if blobs is None:
            raise UsageError(
                "a store in a database needs a place for its files",
                advice="give blobs, a folder or a URL such as s3://bucket/folder",
                remedy="no place for files",
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
    elif not (folder / FILE).is_file():
        raise UnknownStore(f"{folder} holds no store; check the name, or put a prefix to make one")
    url = sqlalchemy.URL.create("sqlite", database=str(folder / FILE))
    return url, str(blobs if blobs is not None else folder / "blobs"), folder


class Database:
    """Connections to one database. Safe in threads and after a fork.

    Attributes:
        wait_seconds: how long a write waits for another one before it fails with StoreUnavailable; None:
            `WAIT_SECONDS` on SQLite, without end on PostgreSQL.
    """

    def __init__(self, url: str | sqlalchemy.URL) -> None:
        self.engine = _engine(url)
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        self.wait_seconds: float | None = None
        self._reader = self._snapshots = self.engine
        if not self.is_sqlite:
            # A single read needs no transaction of its own: two round trips fewer on PostgreSQL.
            self._reader = self.engine.execution_options(isolation_level="AUTOCOMMIT")
            # Several reads that belong together see one moment; SQLite's transactions always do.
            self._snapshots = self.engine.execution_options(isolation_level="REPEATABLE READ")
        _dispose_after_fork(self.engine)

    def read(self, work: Callable[[Connection], T], *, snapshot: bool = False) -> T:
        """What `work` reads; with `snapshot`, all of it as of one moment.

        Raises:
            StoreUnavailable: the database does not answer.
        """
        try:
            with (self._snapshots if snapshot else self._reader).connect() as connection:
                return work(connection)
        except (exc.DBAPIError, exc.TimeoutError) as error:
            raise self._named(error) from error

    def rows(self, query: Select[Any]) -> Sequence[Row[Any]]:
        """What one query finds. Raises as `read`."""
        return self.read(lambda connection: connection.execute(query).all())

    def write(self, work: Callable[[Connection], T], *, durable: bool = True) -> T:
        """Do `work` wholly or not at all; it may run again when two writers blocked each other.

        Args:
            durable: on return the change survives a power cut. Without it, it is lost at worst
                together with everything after it, never in part.

        Raises:
            StoreUnavailable: the database does not answer.
            CannotWrite: its disk is full or it is read-only; nothing was changed.
        """
        wait = self.wait_seconds
        writer = self.engine.execution_options(writes=True, durable=durable, wait_seconds=wait)
        for attempt in range(ATTEMPTS):
            try:
                with writer.connect() as connection, connection.begin():
                    if not self.is_sqlite and not durable:
                        connection.exec_driver_sql("SET LOCAL synchronous_commit TO off")
                    if not self.is_sqlite and wait is not None:
                        connection.exec_driver_sql(f"SET LOCAL lock_timeout TO {int(wait * 1000)}")
                    return work(connection)
            except (exc.DBAPIError, exc.TimeoutError) as error:
                code = getattr(getattr(error, "orig", None), "sqlstate", None)
                if code not in _RETRY or attempt == ATTEMPTS - 1:
                    raise self._named(error) from error
                time.sleep(0.01 * 2**attempt)
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Close every connection; the next call opens new ones."""
        self.engine.dispose()

    def __str__(self) -> str:
        return self.engine.url.render_as_string(hide_password=True)

    def _named(self, error: exc.SQLAlchemyError) -> Exception:
        original = getattr(error, "orig", None)
        code = getattr(original, "sqlstate", None)
        reason = str(original or error).strip().splitlines()[0]
        if code in _FULL or "disk is full" in reason:
            return CannotWrite(
                f"the disk of the database {self} is full ({reason}); nothing was changed. Free some space"
            )
        if code in _READ_ONLY or "readonly database" in reason:
            return CannotWrite(f"the database {self} can't be written ({reason}); nothing was changed")
        damaged = type(error) is exc.DatabaseError  # SQLite: not a database, or its pages do not fit
        if damaged or isinstance(error, exc.OperationalError | exc.InterfaceError | exc.TimeoutError):
            return StoreUnavailable(
                f"the database {self} did not answer ({reason}); what was not confirmed is not listed. "
                "Check that the database runs and can be reached, then repeat the call"
            )
        return error


def insert(connection: Connection, table: sqlalchemy.Table) -> Any:
    """An INSERT that knows ON CONFLICT, which both databases spell alike."""
    return (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(table)


def _engine(url: str | sqlalchemy.URL) -> Engine:
    try:
        parsed = sqlalchemy.make_url(url)
    except exc.ArgumentError as error:
        raise UsageError(
            "the database URL can't be read; expected postgresql://user@host/database"
        ) from error
    create = functools.partial(sqlalchemy.create_engine, pool_size=8, max_overflow=24)
    if parsed.get_backend_name() in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
        return create(parsed, connect_args={"connect_timeout": 10})
    if parsed.get_backend_name() != "sqlite":
        raise UsageError(
            f"databases of type {parsed.drivername} are not supported; expected postgresql or sqlite"
        )
    if not parsed.database or not Path(parsed.database).parent.is_dir():
        raise UsageError(f"a SQLite database needs a file in a folder that exists: sqlite:///folder/{FILE}")
    engine = create(parsed, connect_args={"timeout": WAIT_SECONDS, "check_same_thread": False})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves; the driver's own comes too late
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            break
        except connection.OperationalError as error:  # the switch itself does not wait for others
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    connection.execute("PRAGMA foreign_keys=ON")


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    if options.get("writes"):
        # In WAL mode FULL flushes at each commit, NORMAL only at checkpoints (sqlite.org/pragma.html);
        # a later FULL commit flushes the earlier NORMAL ones with it.
        connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if options.get('durable') else 'NORMAL'}")
        wait = options.get("wait_seconds")
        if wait is not None:  # it stays set on this connection, whose reads wait for nobody
            connection.exec_driver_sql(f"PRAGMA busy_timeout={int(wait * 1000)}")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.exec_driver_sql("BEGIN")


def _dispose_after_fork(engine: Engine) -> None:
    reference = weakref.ref(engine)

    def dispose() -> None:
        if (alive := reference()) is not None:
            alive.dispose(close=False)  # the connections belong to the parent

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=dispose)
