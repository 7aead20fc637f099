"""Watch: beside a training run, says that its worker is alive, and stops the run when it should stop."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence

from foreword.errors import ForewordError
from foreword.serving import logs
from foreword.serving.config import Configuration
from foreword.serving.jobs import job_taking
from foreword.store.database import Catalogue

BEATS_PER_LEASE = 5
LONGEST_PAUSE = 2.0
"""Seconds after which a cancelled job is noticed, at most."""


class Watch(threading.Thread):
    """Of one run.

    Attributes:
        training: steps are under way; before, there is nobody who would hear.
        asked: this asked the run to stop: a job was cancelled or forgotten, or its turn is over.
    """

    def __init__(
        self, catalogue: Catalogue, worker: str, taken: Sequence[str], configuration: Configuration
    ) -> None:
        super().__init__(daemon=True, name="watch")
        self._catalogue = catalogue
        self._worker = worker
        self._taken = set(taken)
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._pause = min(configuration.lease_seconds / BEATS_PER_LEASE, LONGEST_PAUSE)
        self._turn_ends = time.monotonic() + configuration.turn_seconds
        self.training = False
        self.asked = False

    def let_go(self, identifier: str) -> None:
        """A job has ended: nobody need watch it."""
        with self._lock:
            self._taken.discard(identifier)

    def stop(self) -> None:
        """The run is over."""
        self._done.set()
        self.join()

    def run(self) -> None:
        """Until `stop`."""
        while not self._done.wait(self._pause):
            try:
                if self._should_stop() and self.training and not self.asked:
                    self.asked = True
                    os.kill(os.getpid(), signal.SIGINT)  # training takes it as: finish the step, and save
            except ForewordError as error:  # the database is away for a moment
                logs.failure("no heartbeat", error, worker=self._worker)

    def _should_stop(self) -> bool:
        with self._lock:
            before = set(self._taken)
        mine = set(job_taking.beat(self._catalogue, self._worker, sorted(before)))
        with self._lock:
            lost = (before & self._taken) - mine
        return bool(lost) or (time.monotonic() > self._turn_ends and job_taking.waits(self._catalogue))
