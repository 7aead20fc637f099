"""Jobs that are trained together: their progress noted, their prefixes stored, their claims kept alive."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from foreword import errors
from foreword.base.base_model import BaseModel
from foreword.errors import ForewordError
from foreword.examples import Example
from foreword.prefix import Prefix
from foreword.serving import logs
from foreword.serving.config import Configuration
from foreword.serving.errors import Refused, refused
from foreword.serving.jobs import checkpoints, queue, uploads
from foreword.serving.jobs.queue import Job
from foreword.store import PrefixStore
from foreword.store.database import Database
from foreword.store.record import Version
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
    errors.NotFinite,
    errors.StorageLimitExceeded,
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
        self._noted_steps: dict[str, int] = {}
        self._held_back: dict[str, tuple[int, str, dict[str, Any]]] = {}
        self._unavailable: ForewordError | None = None

    def train(self, base: BaseModel, jobs: Sequence[Job]) -> None:
        """Train them all. Raises as `train_many`, but for what concerns single jobs.

        Raises:
            StoreUnavailable, CannotWrite: also where a prefix could not be stored at the end; its job goes on
                from the last checkpoint.
        """
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
            self._noted_steps[job.id] = queue.noted_step(self._database, job.id)
            if not checkpoints.fetch(self._store, job, owner_folder(self._folder, job.id)):
                message = "the stored checkpoint can't be used; training goes on from what this machine has"
                queue.note(self._database, job.id, "warn", message)
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
                on_checkpoint=self._save,
                **settings,
            )
        except errors.OwnersFailed as failures:  # `_failed_one` has had each already
            logs.event("jobs failed", worker=self._worker, jobs=list(failures.errors))
        finally:
            for identifier in list(self._held_back):
                self._note_held_back(identifier)
        if self._unavailable is not None:
            raise self._unavailable

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
        folder = owner_folder(self._folder, identifier)
        another = checkpoints.differs(self._store, identifier, folder)
        if not another:
            checkpoints.drop(self._store, identifier)
        shutil.rmtree(folder, ignore_errors=True)
        goes_on = "goes on from the stored one" if another else "begins anew"
        message = f"the checkpoint can't be used; training {goes_on}"
        queue.note(self._database, identifier, "warn", message)

    def _save(self, identifier: str, path: Path) -> None:
        """Copy a checkpoint into the store; training goes on where that fails, and the next one is tried."""
        try:
            checkpoints.save(self._store, self._worker, self._jobs[identifier], path)
        except queue.NotClaimed:  # the heartbeat notices, too, and stops the run
            logs.event("checkpoint of a job that is gone", job=identifier)
        except (errors.StoreUnavailable, errors.CannotWrite) as error:
            logs.failure("checkpoint not stored", error, job=identifier)

    def _examples(self, job: Job, identifier: str) -> list[Example]:
        record = uploads.find(self._database, job.owner, identifier)
        return uploads.parse(uploads.content(self._database, job.owner, identifier), record.filename)

    def _finish(self, identifier: str, prefix: Prefix) -> None:
        """Store a job's prefix and end the job: both or neither, and only while it is this worker's."""
        job = self._jobs[identifier]
        self._note_held_back(identifier)
        if not math.isfinite(prefix.origin.dev_loss or 0.0):
            return self._fail(identifier, errors.NotFinite("the validation loss was no number at every step"))
        # The same bytes however often the job was begun, so that putting them twice is no second version.
        final = dataclasses.replace(prefix, created=job.created, labels={**prefix.labels, "job": job.id})
        used = _used(owner_folder(self._folder, identifier))
        unneeded: str | None = None

        def end(connection: Connection, version: Version) -> None:
            nonlocal unneeded
            self._heartbeat.let_go(identifier)  # before anybody can see that it has ended
            unneeded = queue.succeed(connection, self._worker, identifier, version.reference, **used)

        def put() -> None:
            limit = checkpoints.stored_bytes_of(job)
            self._store.as_owner(job.owner).put(f"{job.owner}/{job.name}", final, limit=limit, also=end)

        try:
            try:
                put()
            except errors.StorageLimitExceeded:
                if not checkpoints.drop(self._store, identifier):  # the prefix is worth more than that
                    raise
                put()
        except queue.NotClaimed:  # cancelled, forgotten, or another worker's
            self._heartbeat.let_go(identifier)
            unneeded = final.digest
        except errors.StorageLimitExceeded as error:
            self._fail(identifier, error)
        except (errors.StoreUnavailable, errors.CannotWrite) as error:
            logs.failure("prefix not stored", error, job=identifier)
            self._unavailable = error
        else:
            logs.event("job succeeded", job=identifier, steps=prefix.origin.steps)
        if unneeded is not None:
            checkpoints.remove_file(self._store, unneeded)

    def _fail(self, identifier: str, error: Exception) -> None:
        self._heartbeat.let_go(identifier)
        self._note_held_back(identifier)
        readable = isinstance(error, _OWNERS_TO_READ)
        message = (
            _in_words_of_api(error)
            if readable
            else "the server could not go on with this job; its log says why"
        )
        kind = type(error).__name__ if readable else "server_error"
        used = _used(owner_folder(self._folder, identifier))
        with contextlib.suppress(queue.NotClaimed):  # cancelled or forgotten: then nobody asks why it failed
            unneeded = queue.fail(self._database, self._worker, identifier, kind, message, **used)
            if unneeded is not None:
                checkpoints.remove_file(self._store, unneeded)
        logs.failure("job failed", error, job=identifier)

    def _progress(self, progress: Progress) -> None:
        identifier = progress.owner or ""
        if progress.note is not None:
            # A note of going on names the file, which is nothing to an owner.
            note = progress.note.split(": ", 1)[0] if progress.note.startswith("going on") else progress.note
            queue.note(self._database, identifier, "info", note, once=note is progress.note)
            return
        self._heartbeat.training = True
        first = self._first_steps.setdefault(identifier, progress.step)
        if progress.step - first == int(progress.steps * ADVANCED) + 1:
            queue.advanced(self._database, self._worker, identifier)
        if progress.step <= self._noted_steps[identifier]:  # told of before training broke off
            return
        if identifier in self._held_back and self._held_back[identifier][0] != progress.step:
            self._note_held_back(identifier)
        evaluated = progress.dev_loss != self._dev_losses.get(identifier)
        due = progress.step % max(1, progress.steps // EVENTS) == 0 or progress.step == progress.steps
        if not (due or evaluated):
            return
        self._dev_losses[identifier] = progress.dev_loss
        data = {
            "step": progress.step,
            "total_steps": progress.steps,
            "train_loss": _number(progress.loss),
            "full_valid_loss": _number(progress.dev_loss),
        }
        losses = {"training loss": progress.loss, "validation loss": progress.dev_loss if evaluated else None}
        shown = ", ".join(f"{name}={loss:.4f}" for name, loss in losses.items() if loss is not None)
        # Not yet: an evaluation of the same step comes as progress of its own, and makes one event with it.
        self._held_back[identifier] = (
            progress.step,
            f"step {progress.step} of {progress.steps}: {shown}",
            data,
        )

    def _note_held_back(self, identifier: str) -> None:
        if (event := self._held_back.pop(identifier, None)) is not None:
            step, message, data = event
            queue.note(self._database, identifier, "info", message, data)
            self._noted_steps[identifier] = step


def _number(loss: float | None) -> float | None:
    """What JSON can hold of a loss."""
    return loss if loss is not None and math.isfinite(loss) else None


def _used(folder: Path) -> dict[str, int]:
    """Steps and tokens that a job has been trained, by its log."""
    log = folder / "log.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    tokens = [row["tokens"] for row in rows if "tokens" in row]
    return {"steps": len(tokens), "tokens": sum(tokens)}


def _in_words_of_api(error: Exception) -> str:
    """What a job's owner is told of an error that is theirs."""
    if isinstance(error, Refused):
        return error.message
    answer = refused(error) if isinstance(error, ForewordError) else None
    return str(error) if answer is None or answer.status >= 500 else answer.message
