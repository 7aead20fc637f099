"""The training process: claims jobs from the queue and trains them, beside serving and below it.

    python -m foreword.serving.jobs.trainer < configuration

It has the lowest priority that the system knows, so that serving goes first wherever both want the same
cores. It stops, with a checkpoint, on SIGTERM and when its standard input ends: a server that was killed
leaves no training behind. The configuration comes on the first line of standard input, where no list of
processes shows it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from types import FrameType

import torch

from foreword.base.base_model import BaseModel
from foreword.errors import CannotWrite, ForewordError, ForewordWarning, StoreUnavailable
from foreword.serving import logs
from foreword.serving.config import Configuration, of
from foreword.serving.jobs import checkpoints, queue
from foreword.serving.jobs.queue import Job
from foreword.serving.jobs.supervisor import UNAVAILABLE
from foreword.serving.jobs.worker import JobHeartbeat, TrainingRun, is_servers
from foreword.serving.served_model import open_base, open_store
from foreword.training.train import TrainingStopped

LOWEST_PRIORITY = 19
POLL_SECONDS = 0.5


class TrainingProcess:
    """One worker; once `stopping`, it takes no more jobs."""

    def __init__(self, configuration: Configuration, worker: str) -> None:
        self._configuration = configuration
        self._worker = worker
        self._store = open_store(configuration)
        self._database = self._store.database
        self._folder = self._store.job_folder()
        self.stopping = False

    def work(self) -> None:
        """Train whatever comes, until there has been nothing for a while or somebody says stop."""
        base = open_base(self._configuration, self._store)
        idle_since = time.monotonic()
        while not self.stopping and time.monotonic() - idle_since < self._configuration.idle_seconds:
            self._sweep()
            jobs = queue.claim(self._database, self._worker, self._configuration.jobs_together)
            if not jobs:
                time.sleep(POLL_SECONDS)
                continue
            logs.event("training begins", worker=self._worker, jobs=[job.id for job in jobs])
            self._train(base, jobs)
            idle_since = time.monotonic()

    def _train(self, base: BaseModel, jobs: Sequence[Job]) -> None:
        heartbeat = JobHeartbeat(self._database, self._worker, [job.id for job in jobs], self._configuration)
        heartbeat.start()
        run = TrainingRun(self._configuration, self._store, self._worker, heartbeat)
        try:
            run.train(base, jobs)
        except TrainingStopped:
            self.stopping = self.stopping or not heartbeat.stopped_run
        except KeyboardInterrupt:  # asked for twice: without a last checkpoint
            self.stopping = True
        except ForewordError as error:
            if isinstance(error, (StoreUnavailable, CannotWrite)) and is_servers(self._store, error):
                # No fault of any job. The supervisor waits, longer each time, before it starts another
                # process.
                logs.failure("no place to keep what is trained", error, worker=self._worker)
                queue.release(self._database, self._worker, orderly=True)
                raise
            logs.failure("training failed", error, worker=self._worker)
            run.failed(jobs, error)
        finally:
            heartbeat.stop()
        queue.release(self._database, self._worker, orderly=True)

    def _sweep(self) -> None:
        """Remove the checkpoints of jobs that have ended or are forgotten."""
        checkpoints.drop_of_ended(self._store)
        if not self._folder.is_dir():
            return
        live = queue.live(self._database)
        for folder in self._folder.iterdir():
            if folder.name.removeprefix("@") not in live:
                shutil.rmtree(folder, ignore_errors=True)


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):  # not through the buffer, whose lock would outlive the interpreter
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """The process."""
    given = json.loads(sys.stdin.buffer.readline())
    configuration = of(given["configuration"])
    logs.install()
    warnings.simplefilter("ignore", ForewordWarning)  # the same is among the job's events
    if hasattr(os, "nice"):
        os.nice(LOWEST_PRIORITY)
    if configuration.trainer_threads is not None:
        torch.set_num_threads(configuration.trainer_threads)
    try:
        trainer = TrainingProcess(configuration, given["worker"])

        def stop(number: int, frame: FrameType | None) -> None:
            trainer.stopping = trainer.stopping or number == signal.SIGTERM

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        threading.Thread(target=_end_with_parent, daemon=True).start()
        trainer.work()
    except Exception as error:  # the interpreter would print its message, which may quote examples
        logs.failure("trainer broke off", error, worker=given["worker"])
        sys.exit(UNAVAILABLE if isinstance(error, (StoreUnavailable, CannotWrite)) else 1)


if __name__ == "__main__":
    main()
