"""Upkeep: what a server does beside its requests, in a thread of its own.

It writes down what its owners have used, every few seconds and once more at its end. And it does the store's
tasks where it is its turn (`store/tasks.py`): checks files, notes what owners store, removes files that
nothing names.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Iterator

from foreword.serving import logs
from foreword.store import PrefixStore, tasks
from foreword.store.tasks import Checked
from foreword.store.usage import Meter, sample_stored_bytes

FLUSH_SECONDS = 5.0
"""What owners have used is written this often: a server that is killed loses no more."""
CLAIM_SECONDS = 300.0
"""How long a task is this server's; a file that takes longer to check may be checked twice."""
SAMPLE_SECONDS = 3600.0
"""How often what owners store is noted."""
COLLECT_SECONDS = 300.0
"""How often files that nothing names are removed, and how long they stay: what an owner deletes counts for
them so long."""
DAY = 24 * 3600.0


class Upkeep(threading.Thread):
    """The thread; `stop` ends it.

    Attributes:
        checked: what this server has seen of the store's files.
    """

    def __init__(self, store: PrefixStore, meter: Meter, *, verify_days: float | None) -> None:
        super().__init__(daemon=True, name="upkeep")
        self._store, self._meter = store, meter
        self._verify_days = verify_days
        self._holder = secrets.token_hex(8)
        self._stopping = threading.Event()
        self._check_until = 0.0
        self.checked = Checked()

    def stop(self) -> None:
        """End the thread, and write down what has been used; call it when no request is under way."""
        self._stopping.set()
        if self.is_alive():
            self.join()
        with self._logged("usage not written"):
            self._meter.flush(self._store.database)

    def run(self) -> None:
        """Until `stop`."""
        while not self._stopping.wait(FLUSH_SECONDS):
            with self._logged("usage not written"):
                self._meter.flush(self._store.database)
            with self._logged("upkeep of the store failed"):
                self.do_tasks()

    def do_tasks(self) -> None:
        """Do what is due and nobody else's. Raises StoreUnavailable, CannotWrite: it is tried again."""
        store, database = self._store, self._store.database
        if self._claim("sample", SAMPLE_SECONDS):
            sample_stored_bytes(database)
            tasks.finish(database, "sample", self._holder)
        if self._claim("collect", COLLECT_SECONDS):
            store.collect_unnamed(grace=COLLECT_SECONDS)
            tasks.finish(database, "collect", self._holder)
        old = None if self._verify_days is None else self._verify_days * DAY
        if old is not None and tasks.are_due(database, old) and self._claim("verify", 0.0):
            self._check_until = time.monotonic() + FLUSH_SECONDS
            seen = store.check_files(older_than=old, pause=self._pause)
            tasks.finish(database, "verify", self._holder)
            self.checked += seen
            if seen.damaged or seen.missing:
                logs.event("files of the store can't be used", damaged=seen.damaged, missing=seen.missing)

    def measurements(self) -> dict[str, float]:
        """Files that this server has checked, and what the store knows of all."""
        return {"checked": float(self.checked.files), **tasks.checks(self._store.database)}

    def _claim(self, name: str, every: float) -> bool:
        return tasks.claim(self._store.database, name, self._holder, seconds=CLAIM_SECONDS, every=every)

    def _pause(self, seconds: float) -> bool:
        """Whether to leave the rest of the files for the next time."""
        return self._stopping.wait(seconds) or time.monotonic() > self._check_until

    @contextlib.contextmanager
    def _logged(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is, usage is to be written, and the rest is tried again
            logs.failure(what, error)
