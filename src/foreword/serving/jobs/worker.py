"""Jobs that are trained together: their progress noted, their prefixes stored, their claims kept alive."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foreword import errors
from foreword.base.base_model import BaseModel
from foreword.errors import ForewordError
from foreword.examples import Example
from foreword.prefix import Prefix
from foreword.serving import logs
from foreword.serving.config import Configuration
from foreword.serving.errors import Refused
from foreword.serving.jobs import queue, uploads
from foreword.serving.jobs.queue import Job
from foreword.store import PrefixStore
from foreword.store.database import Database
from foreword.template import Template
from foreword.training.run_log import Progress
from foreword.training.train_many import owner_folder, train_many

BEATS_PER_LEASE = 5
"""So that a lease outlives several heartbeats that come late, as on a busy machine."""
LONGEST_PAUSE = 2.0
"""Seconds after which a cancelled job is noticed, at most."""
EVENTS = 50
"""Progress events of a job, about."""
ADVANCED = 0.1
"""Share of a job's steps that a worker must have done for earlier accidents to be forgotten; a checkpoint
is written as often."""

_OWNERS_TO_READ = (
    errors.BadExamples,
    errors.BadPrefix,
    errors.TrainingDiverged,
    errors.UnknownPrefix,
    errors.UsageError,
    errors.WindowExceeded,
    Refused,
)
"""Errors whose messages are about the caller's data and settings; those of files and databases are not
theirs to read."""


class JobHeartbeat(threading.Thread):
    """Says beside a run that its worker is alive, and stops the run when it should stop.

    Attributes:
        training: steps are under way; before, nobody would hear the signal.
        stopped_run: this stopped the run: a job was cancelled or forgotten, or its turn is over.
    """

    def __init__(
        self, database: Database, worker: str, claimed: Sequence[str], configuration: Configuration
    ) -> None:
        super().__init__(daemon=True, name="job-heartbeat")
        self._database = database
        self._worker = worker
        self._claimed = set(claimed)
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._pause = min(configuration.lease_seconds / BEATS_PER_LEASE, LONGEST_PAUSE)
        self._turn_ends = time.monotonic() + configuration.turn_seconds
        self.training = False
        self.stopped_run = False

    def let_go(self, identifier: str) -> None:
        """A job has ended: nobody need watch it."""
        with self._lock:
            self._claimed.discard(identifier)

    def stop(self) -> None:
        """The run is over."""
        self._done.set()
        self.join()

    def run(self) -> None:
        """Until `stop`."""
        while not self._done.wait(self._pause):
            try:
                if self._should_stop() and self.training and not self.stopped_run:
                    self.stopped_run = True
                    os.kill(os.getpid(), signal.SIGINT)  # training takes it as: finish the step, and save
            except ForewordError as error:  # the database is away for a moment
                logs.failure("no heartbeat", error, worker=self._worker)

    def _should_stop(self) -> bool:
        with self._lock:
            before = set(self._claimed)
        # What the run finished meanwhile is not lost: only what is still claimed here, and not there.
        mine = set(queue.heartbeat(self._database, self._worker, sorted(before)))
        with self._lock:
            lost = (before & self._claimed) - mine
        return bool(lost) or (time.monotonic() > self._turn_ends and queue.waits(self._database))


class TrainingRun:
    """Some jobs that are trained together."""

    def __init__(
        self, configuration: Configuration, store: PrefixStore, worker: str, heartbeat: JobHeartbeat
    ) -> None:
        self._configuration = configuration
        self._store = store
        self._database = store.database
        self._worker = worker
        self._folder = store.job_folder()
        self._heartbeat = heartbeat
        self._jobs: dict[str, Job] = {}
        self._first_steps: dict[str, int] = {}
        self._dev_losses: dict[str, float | None] = {}

    def train(self, base: BaseModel, jobs: Sequence[Job]) -> None:
        """Train them all. Raises as `train_many`, but for what concerns single jobs."""
        examples: dict[str, list[Example]] = {}
        dev: dict[str, list[Example]] = {}
        for job in jobs:
            try:
                examples[job.id] = self._examples(job, job.training_file)
                if job.validation_file is not None:
                    dev[job.id] = self._examples(job, job.validation_file)
            except (errors.BadExamples, Refused) as error:
                examples.pop(job.id, None)
                self._fail(job.id, error)
                continue
            self._jobs[job.id] = job
        if not self._jobs:
            return
        settings: dict[str, Any] = dict(jobs[0].settings)
        template = Template.from_json(settings.pop("template"))
        reference = settings.pop("start")
        # Each job's owner could read it when the job was made; the version never changes.
        start = None if reference is None else self._store.get(reference)
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            train_many(
                base,
                examples,
                dev=dev,
                template=template,
                start=start,
                checkpoint_dir=self._folder,
                isolated=self._configuration.isolated,
                into=self._finish,
                on_failure=self._failed_one,
                on_progress=self._progress,
                **settings,
            )
        except errors.OwnersFailed as failures:  # `_failed_one` has had each already
            logs.event("jobs failed", worker=self._worker, jobs=list(failures.errors))

    def failed(self, jobs: Sequence[Job], error: ForewordError) -> None:
        """What befell the run as a whole: each of its jobs is tried again, alone, and not for ever."""
        if len(jobs) == 1 and isinstance(error, _OWNERS_TO_READ):
            self._fail(jobs[0].id, error)
            return
        if len(jobs) == 1 and isinstance(error, errors.CheckpointMismatch):
            self._drop_checkpoints(jobs[0].id)
        queue.release(self._database, self._worker, orderly=False)

    def _failed_one(self, identifier: str, error: ForewordError) -> None:
        if isinstance(error, errors.DamagedCheckpoint):
            self._drop_checkpoints(identifier)  # and back into the queue when the run is over
        else:
            self._fail(identifier, error)

    def _drop_checkpoints(self, identifier: str) -> None:
        shutil.rmtree(owner_folder(self._folder, identifier), ignore_errors=True)
        message = "the checkpoint can't be used; training begins anew"
        queue.note(self._database, identifier, "warn", message)

    def _examples(self, job: Job, identifier: str) -> list[Example]:
        record = uploads.find(self._database, job.owner, identifier)
        return uploads.parse(uploads.content(self._database, job.owner, identifier), record.filename)

    def _finish(self, identifier: str, prefix: Prefix) -> None:
        job = self._jobs[identifier]
        if identifier not in queue.heartbeat(self._database, self._worker, [identifier]):
            self._heartbeat.let_go(identifier)
            return
        # The same bytes however often the job was begun, so that putting them twice is no second version.
        final = dataclasses.replace(prefix, created=job.created, labels={**prefix.labels, "job": job.id})
        view = self._store.as_owner(job.owner)
        version = view.put(f"{job.owner}/{job.name}", final)
        self._heartbeat.let_go(identifier)
        tokens = _tokens(owner_folder(self._folder, identifier) / "log.jsonl")
        if not queue.succeed(self._database, self._worker, identifier, version.reference, tokens):
            view.delete(version.reference)  # cancelled or forgotten in the last moment
            return
        logs.event("job succeeded", job=identifier, steps=prefix.origin.steps)

    def _fail(self, identifier: str, error: Exception) -> None:
        self._heartbeat.let_go(identifier)
        readable = isinstance(error, _OWNERS_TO_READ)
        message = str(error) if readable else "the server could not go on with this job; its log says why"
        kind = type(error).__name__ if readable else "server_error"
        queue.fail(self._database, self._worker, identifier, kind, message)
        logs.failure("job failed", error, job=identifier)

    def _progress(self, progress: Progress) -> None:
        identifier = progress.owner or ""
        if progress.note is not None:
            # A note of going on names the file, which is nothing to an owner.
            note = progress.note.split(": ", 1)[0] if progress.note.startswith("going on") else progress.note
            queue.note(self._database, identifier, "info", note)
            return
        self._heartbeat.training = True
        first = self._first_steps.setdefault(identifier, progress.step)
        if progress.step - first == int(progress.steps * ADVANCED) + 1:
            queue.advanced(self._database, self._worker, identifier)
        evaluated = progress.dev_loss != self._dev_losses.get(identifier)
        due = progress.step % max(1, progress.steps // EVENTS) == 0 or progress.step == progress.steps
        if not (due or evaluated):
            return
        self._dev_losses[identifier] = progress.dev_loss
        data = {
            "step": progress.step,
            "total_steps": progress.steps,
            "train_loss": progress.loss,
            "full_valid_loss": progress.dev_loss,
        }
        losses = {"training loss": progress.loss, "validation loss": progress.dev_loss if evaluated else None}
        shown = ", ".join(f"{name}={loss:.4f}" for name, loss in losses.items() if loss is not None)
        message = f"step {progress.step} of {progress.steps}: {shown}"
        queue.note(self._database, identifier, "info", message, data)


def _tokens(log: Path) -> int:
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    return sum(row.get("tokens", 0) for row in rows)
