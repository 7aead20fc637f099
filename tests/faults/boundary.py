"""The boundary between Foreword and the world, recorded and made to fail at one point.

A point is a call by which the process reads or changes something that outlives it: opening a file, a write, a
flush, a rename, a delete, a folder; a connection, a query, a statement or a commit of the database; a request to
a bucket; and the places where much memory is taken. It has a name that is the same in every run: what is called,
from which function of Foreword, and for the how many-th time.

`Boundary` replaces these calls in its process, for files below one folder only. Without a target it counts; with
one, it lets the failure happen at that point, as the system or the driver would.

What is no point, and why:
  - PRAGMAs: they are settings of a connection.
  - SQLite's own writes and flushes: they are made in C below the statement and the commit, which are points; that
    a transaction of SQLite is whole or absent after a kill is what SQLite promises (sqlite.org/atomiccommit.html).
  - `os.utime`, `chmod`, and looking whether a file is there: nothing depends on them afterwards.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import socket
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

# Imported here, before the forks, so that no run need import them anew.
import psycopg
import psycopg.errors
import safetensors.torch
import torch
from fsspec.implementations.local import LocalFileSystem
from sqlalchemy.engine.default import DefaultDialect

import foreword
from foreword.training import loop

T = TypeVar("T")

PACKAGE = str(Path(foreword.__file__).parent) + os.sep
GENERIC = ("store/database.py",)
"""Files that only pass on what others ask of the database: a point is named after who asked."""

FULL, BROKEN, MEMORY, LOST, DEADLOCK = "disk full", "I/O error", "out of memory", "lost", "deadlock"
LOST_AFTER, KILLED, KILLED_AFTER, BESIDE = "lost after it was done", "killed", "killed after", "nothing"

FAILURES: dict[str, tuple[str, ...]] = {
    "open to read": (BROKEN, MEMORY),
    "create": (FULL, BROKEN, MEMORY, KILLED),
    "write": (FULL, BROKEN, MEMORY, KILLED),  # each after half of the bytes
    "flush": (FULL, BROKEN, KILLED),
    "rename": (FULL, BROKEN, KILLED, KILLED_AFTER),
    "delete": (BROKEN, KILLED, KILLED_AFTER),
    "make folder": (FULL, BROKEN, KILLED),
    "connect": (LOST,),
    "query": (LOST, MEMORY),
    "statement": (FULL, LOST, MEMORY, DEADLOCK, KILLED),
    "commit": (FULL, LOST, DEADLOCK, LOST_AFTER, KILLED, KILLED_AFTER),
    "get object": (LOST, MEMORY),
    "put object": (LOST, LOST_AFTER, MEMORY, KILLED, KILLED_AFTER),
    "delete object": (LOST, LOST_AFTER, KILLED, KILLED_AFTER),
    "serialize": (MEMORY,),
    "training step": (MEMORY, KILLED),
}
"""What can go wrong at a point of each kind."""
OF_DATABASES = ("connect", "query", "statement", "commit")
POSTGRES_ONLY = (DEADLOCK,)
"""SQLite has one writer at a time, and so no circle of writers who wait for each other."""
KILLS = (KILLED, KILLED_AFTER)


@dataclass(frozen=True, order=True)
class Point:
    """A call to the world: what, by whom, and the how many-th of these."""

    kind: str
    site: str
    number: int

    def __str__(self) -> str:
        return f"{self.kind} {self.number} in {self.site}"


class Boundary:
    """The calls of this process to the world, below one folder; install it in a process of its own.

    Attributes:
        points: those that were reached, in order.
        hit: the target was reached.
        again: so was, later in the same call, another point of its kind and site: the call was repeated.
        meanwhile: called at the target, before the failure.
    """

    def __init__(self, folder: Path, target: Point | None = None, failure: str | None = None) -> None:
        self.folder = os.path.realpath(folder) + os.sep
        self.points: list[Point] = []
        self.hit = self.again = False
        self.meanwhile: Callable[[], None] | None = None
        self._target, self._failure = target, failure
        self._counts: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._watching = False
        self._full = False
        self._within = threading.local()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it, calls are points. A disk that is full has room again afterwards."""
        self._watching = True
        try:
            yield
        finally:
            self._watching = self._full = False

    def make_room(self) -> None:
        """A disk that is full has room again."""
        self._full = False

    def install(self) -> None:
        """Replace the calls, until the end of the process."""
        _install_files(self)
        _install_database(self)
        _install_buckets(self)
        _install_memory(self)

    def inside(self, path: Any, folder: int | None = None) -> bool:
        """Whether a path, or what a descriptor stands for, is below the folder that is watched."""
        if not self._watching or getattr(self._within, "point", False):
            return False
        if isinstance(path, int):
            path = f"/proc/self/fd/{path}"
            path = os.readlink(path) if os.path.lexists(path) else "/"
        elif folder is not None:
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fspath(path))
        return (os.path.abspath(os.fspath(path)) + os.sep).startswith(self.folder)

    def cross(self, kind: str, act: Callable[[], T], fail: Callable[[str], BaseException | None]) -> T:
        """Do `act`, or let it fail.

        Args:
            fail: breaks something, or makes the error that a failure shows itself by; None lets `act` find out.
        """
        failure = self._reach(kind)
        if failure is None:
            return act()
        if failure == MEMORY:
            raise torch.OutOfMemoryError("CUDA out of memory") if kind == "training step" else MemoryError()
        if failure == KILLED:
            fail(failure)
            os.kill(os.getpid(), signal.SIGKILL)
        if failure == KILLED_AFTER:
            try:
                act()
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
        if failure == LOST_AFTER:
            act()
        error = fail(failure)
        if error is not None:
            raise error
        return act()

    @contextmanager
    def one_point(self) -> Iterator[None]:
        """Within it nothing else is a point: what a bucket does is one request, wholly or not at all."""
        self._within.point = True
        try:
            yield
        finally:
            self._within.point = False

    def _reach(self, kind: str) -> str | None:
        if not self._watching or getattr(self._within, "point", False):
            return None
        site = _site()
        if site is None:
            return None
        with self._lock:
            self._counts[kind, site] += 1
            point = Point(kind, site, self._counts[kind, site])
            self.points.append(point)
            if point != self._target or self.hit:
                if (
                    self.hit
                    and self._target is not None
                    and (kind, site) == (self._target.kind, self._target.site)
                ):
                    self.again = True
                return FULL if self._full and kind in ("create", "write", "make folder") else None
            self.hit = True
        if self.meanwhile is not None:
            with self.one_point():
                self.meanwhile()
        if self._failure == FULL:
            self._full = True  # and stays so until the call has ended
        return None if self._failure == BESIDE else self._failure


def _site() -> str | None:
    """File and function of Foreword that make the call; None when it isn't Foreword that calls."""
    frame = sys._getframe(2)
    site = None
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(PACKAGE):
            file = name.removeprefix(PACKAGE)
            site = f"{file}:{frame.f_code.co_name}"
            if file not in GENERIC:
                return site
        frame = frame.f_back  # type: ignore[assignment]
    return site


def _refusal(failure: str) -> OSError:
    number = errno.ENOSPC if failure == FULL else errno.EIO
    return OSError(number, os.strerror(number))


# -- files -------------------------------------------------------------------------------------


class _RawFile(io.FileIO):
    """A file whose writes are points. One that fails takes half of the bytes, and the next call says why."""

    boundary: Boundary
    refusal: OSError | None = None

    def write(self, content: Any) -> int:
        if self.refusal is not None:
            refusal, self.refusal = self.refusal, None
            raise refusal
        half: list[int] = []

        def fail(failure: str) -> OSError | None:
            half.append(io.FileIO.write(self, bytes(content)[: len(content) // 2]))
            self.refusal = _refusal(failure)
            return None

        def act() -> int:
            return half[0] if half else io.FileIO.write(self, content)

        return int(self.boundary.cross("write", act, fail))


def _install_files(boundary: Boundary) -> None:
    really_open = io.open

    def opened(
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        def plainly() -> Any:
            return really_open(file, mode, buffering, encoding, errors, newline, closefd, opener)

        if not boundary.inside(file):
            return plainly()
        if not set(mode) & set("wxa+"):
            return boundary.cross("open to read", plainly, _refusal)

        def watched() -> Any:
            raw = _RawFile(file, mode.replace("b", "").replace("t", ""))
            raw.boundary = boundary
            if buffering == 0:
                return raw
            if "+" in mode:
                buffered: Any = io.BufferedRandom(raw)
            else:
                buffered = io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

        return boundary.cross("create", watched, _refusal)

    io.open = builtins.open = opened  # type: ignore[assignment]

    def replace(name: str, kind: str, watched: Callable[..., bool]) -> None:
        real = getattr(os, name)

        def call(*arguments: Any, **more: Any) -> Any:
            if not watched(*arguments, **more):
                return real(*arguments, **more)
            return boundary.cross(kind, lambda: real(*arguments, **more), _refusal)

        setattr(os, name, call)

    def below(path: Any, *_: Any, dir_fd: int | None = None, **__: Any) -> bool:
        return boundary.inside(path, dir_fd)

    def creates(path: Any, flags: int, *_: Any, dir_fd: int | None = None, **__: Any) -> bool:
        return bool(flags & os.O_CREAT) and boundary.inside(path, dir_fd)

    replace("open", "create", creates)
    for name, kind in (
        ("fsync", "flush"),
        ("rename", "rename"),
        ("replace", "rename"),
        ("link", "rename"),
        ("unlink", "delete"),
        ("remove", "delete"),
        ("rmdir", "delete"),
        ("mkdir", "make folder"),
    ):
        replace(name, kind, below)


# -- databases ---------------------------------------------------------------------------------


def _install_database(boundary: Boundary) -> None:
    def broken(connection: Any) -> Callable[[str], BaseException | None]:
        def fail(failure: str) -> BaseException | None:
            if failure in KILLS:
                return None
            if isinstance(connection, sqlite3.Connection):
                full = failure == FULL
                return sqlite3.OperationalError("database or disk is full" if full else "disk I/O error")
            if failure == FULL:
                return psycopg.errors.DiskFull("could not extend file: No space left on device")
            if failure == DEADLOCK:
                return psycopg.errors.DeadlockDetected("deadlock detected")
            # What psycopg says of a connection that is really gone: the call itself finds out.
            with socket.socket(fileno=os.dup(connection.pgconn.socket)) as line:
                line.shutdown(socket.SHUT_RDWR)
            if failure == LOST_AFTER:
                try:
                    connection.execute("SELECT 1")
                except psycopg.OperationalError as error:
                    return error
            return None

        return fail

    def execute(name: str) -> None:
        real = getattr(DefaultDialect, name)

        def call(self: Any, cursor: Any, statement: str, *arguments: Any, **more: Any) -> Any:
            def act() -> Any:
                return real(self, cursor, statement, *arguments, **more)

            if statement.startswith("PRAGMA"):
                return act()
            context = more.get("context", arguments[-1] if arguments else None)
            options = getattr(context, "execution_options", {})
            kind = "statement" if options.get("writes") else "query"
            return boundary.cross(kind, act, broken(cursor.connection))

        setattr(DefaultDialect, name, call)

    for name in ("do_execute", "do_executemany", "do_execute_no_params"):
        execute(name)

    commit, connect = DefaultDialect.do_commit, DefaultDialect.connect

    def do_commit(self: Any, connection: Any) -> Any:
        driver = getattr(connection, "driver_connection", connection)
        return boundary.cross("commit", lambda: commit(self, connection), broken(driver))

    def do_connect(self: Any, *arguments: Any, **more: Any) -> Any:
        def fail(failure: str) -> BaseException:
            if self.name == "sqlite":
                return sqlite3.OperationalError("unable to open database file")
            return psycopg.OperationalError("connection refused")

        return boundary.cross("connect", lambda: connect(self, *arguments, **more), fail)

    DefaultDialect.do_commit = do_commit  # type: ignore[method-assign]
    DefaultDialect.connect = do_connect  # type: ignore[method-assign]


# -- buckets -----------------------------------------------------------------------------------


def _install_buckets(boundary: Boundary) -> None:
    """fsspec's local files stand for a bucket: each request is done wholly or not at all."""

    def replace(name: str, kind: str) -> None:
        real = getattr(LocalFileSystem, name)

        def call(self: Any, path: str, *arguments: Any, **more: Any) -> Any:
            def act() -> Any:
                with boundary.one_point():
                    return real(self, path, *arguments, **more)

            return boundary.cross(kind, act, lambda failure: ConnectionError("no route to the bucket"))

        setattr(LocalFileSystem, name, call)

    for name, kind in (("cat_file", "get object"), ("pipe_file", "put object"), ("rm_file", "delete object")):
        replace(name, kind)
    plain = LocalFileSystem.makedirs

    def makedirs(self: Any, *arguments: Any, **more: Any) -> Any:
        with boundary.one_point():  # a bucket has no folders
            return plain(self, *arguments, **more)

    LocalFileSystem.makedirs = makedirs


# -- memory ------------------------------------------------------------------------------------


def _install_memory(boundary: Boundary) -> None:
    save, step = safetensors.torch.save, loop.train_step

    def serialize(*arguments: Any, **more: Any) -> bytes:
        return bytes(boundary.cross("serialize", lambda: save(*arguments, **more), _refusal))

    def train_step(*arguments: Any, **more: Any) -> Any:
        return boundary.cross("training step", lambda: step(*arguments, **more), _refusal)

    safetensors.torch.save = serialize
    loop.train_step = train_step
