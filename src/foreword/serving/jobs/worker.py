"""Jobs of one run, trained together or a document: progress noted, prefixes stored, claims kept alive."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import hashlib
import math
import os
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from foreword import errors, files
from foreword.base.base_model import BaseModel
from foreword.errors import CannotRead, CannotWrite, ForewordError, StoreUnavailable, concerning
from foreword.examples import Example, Preference
from foreword.examples.readers import Summary
from foreword.prefix import Prefix
from foreword.serving import logs
from foreword.serving.config import Configuration
from foreword.serving.errors import Refused, refused
from foreword.serving.jobs import checkpoints, documents, queue, uploads
from foreword.serving.jobs.queue import Job, Used
from foreword.serving.jobs.results import metrics_file
from foreword.serving.jobs.settings import is_document, learned_by
from foreword.serving.jobs.uploads import Upload
from foreword.store import PrefixStore
from foreword.store.blobs import check_there, new_key
from foreword.store.database import Database
from foreword.store.record import Version
from foreword.template import Template
from foreword.training.checkpoint import prepare_folder
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
    errors.BadConversations,
    errors.BadDocument,
    errors.BadExamples,
    errors.BadPrefix,
    errors.HarmExceeded,
    errors.NotFinite,
    errors.ReportWorse,
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
        used: what each job has used so far; the run writes it, and the heartbeat passes it on.
        training: steps are under way; before, the run is not to be stopped for others' jobs.
        hears: the signal that stops the run is heard where no steps are under way, too.
        paused: jobs that are to leave the run, which goes on without them.
        stopped_run: this stopped the run: a job was cancelled or forgotten, or its turn is over.
    """

    def __init__(
        self, database: Database, worker: str, claimed: Sequence[str], configuration: Configuration
    ) -> None:
        super().__init__(daemon=True, name="job-heartbeat")
        self._database = database
        self._worker = worker
        self._claimed = set(claimed)
        self._ending: str | None = None
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._pause = min(configuration.lease_seconds / BEATS_PER_LEASE, LONGEST_PAUSE)
        self._began = time.monotonic()
        self._turn_ends = self._began + configuration.turn_seconds
        self.used: dict[str, Used] = {}
        self.training = False
        self.hears = False
        self.paused: set[str] = set()
        self.stopped_run = False

    @contextlib.contextmanager
    def ending(self, identifier: str) -> Iterator[None]:
        """Within it a job comes to its end: it is kept alive, and no loss once it is another's no longer.

        The run is not to be stopped when the heartbeat sees the end before the worker has said `let_go`.
        """
        with self._lock:
            self._ending = identifier
        try:
            yield
        finally:
            with self._lock:
                self._ending = None

    def steps_begin(self) -> None:
        """What was done before the first step is done again in each turn: steps have as long as that took."""
        moment = time.monotonic()
        self._turn_ends = max(self._turn_ends, moment + moment - self._began)

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
                if self._should_stop() and (self.training or self.hears) and not self.stopped_run:
                    self.stopped_run = True
                    os.kill(os.getpid(), signal.SIGINT)  # training takes it as: finish the step, and save
            except ForewordError as error:  # the database is away for a moment
                logs.failure("no heartbeat", error, worker=self._worker)

    def _should_stop(self) -> bool:
        with self._lock:
            before = set(self._claimed)
            used = {name: self.used[name] for name in sorted(before & self.used.keys())}
        # What the run finished meanwhile is not lost: only what is still claimed here, and not there.
        mine = set(queue.heartbeat(self._database, self._worker, sorted(before), used))
        self.paused = queue.paused(self._database, self._worker)
        with self._lock:
            lost = (before & self._claimed) - mine - {self._ending}
        over = self.training and time.monotonic() > self._turn_ends
        # A document is a run of its own, which stops where it is: its last checkpoint is as good.
        alone = self.hears and self.paused & before
        return bool(lost or alone) or (over and queue.waits(self._database))


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
        prepare_folder(self._folder)
        if any(is_document(job.settings) for job in jobs):  # one, see `queue.claim`
            return self._compile(base, jobs[0])
        examples: dict[str, list[Example | Preference]] = {}
        dev: dict[str, list[Example | Preference]] = {}
        for job in jobs:
            self._heartbeat.used[job.id] = Used(job.used_steps, job.used_tokens)
            try:
                examples[job.id] = self._examples(job, job.training_file, "training")
                if job.validation_file is not None:
                    dev[job.id] = self._examples(job, job.validation_file, "validation")
            except (errors.BadExamples, Refused) as error:
                examples.pop(job.id, None)
                self._fail(job.id, error)
                continue
            self._take(job)
        if not self._jobs:
            return
        settings: dict[str, Any] = dict(jobs[0].settings)
        settings.pop("reading", None)
        template = Template.from_json(settings.pop("template"))
        reference = settings.pop("start")
        # Each job's owner could read it when the job was made; the version never changes.
        start = None if reference is None else self._store.get(reference)
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
                should_leave=lambda identifier: identifier in self._heartbeat.paused,
                on_leave=self._leave,
                **settings,
            )
        except errors.OwnersFailed as failures:  # `_failed_one` has had each already
            logs.event("jobs failed", worker=self._worker, jobs=list(failures.errors))
        finally:
            for identifier in list(self._held_back):
                self._note_held_back(identifier)
        if self._unavailable is not None:
            raise self._unavailable

    def _take(self, job: Job) -> None:
        """Make ready to train a job, with the store's checkpoint where that is the later one."""
        self._jobs[job.id] = job
        self._noted_steps[job.id] = queue.noted_step(self._database, job.id)
        with concerning(job.id):
            usable = checkpoints.fetch(self._store, job, owner_folder(self._folder, job.id))
        if not usable:
            message = "the stored checkpoint can't be used; training goes on from what this machine has"
            queue.note(self._database, job.id, "warn", message)

    def _compile(self, base: BaseModel, job: Job) -> None:
        """Make a prefix of a document. Raises as `train`."""
        self._heartbeat.used[job.id] = Used(job.used_steps, job.used_tokens)
        self._take(job)
        try:
            with concerning(job.id), documents.stops_at_once():
                self._heartbeat.hears = True
                earlier = job.settings.get("previous")
                made = documents.compile_job(
                    self._database,
                    base,
                    job,
                    owner_folder(self._folder, job.id),
                    previous=None if earlier is None else self._store.get(earlier),
                    on_progress=lambda progress: self._progress(dataclasses.replace(progress, owner=job.id)),
                    on_checkpoint=functools.partial(self._save, job.id),
                )
        except errors.DamagedCheckpoint:
            return self._drop_checkpoints(job.id)  # and back into the queue when the run is over
        except (errors.HarmExceeded, errors.ReportWorse) as error:
            self._note_report(job.id, "warn", error.report)
            return self._fail(job.id, error)
        except _OWNERS_TO_READ as error:
            return self._fail(job.id, error)
        finally:
            self._heartbeat.hears = self._heartbeat.training = False
            self._note_held_back(job.id)
        self._note_report(job.id, "info", made.prefix.report)
        self._finish(job.id, made.prefix, made.files)
        if self._unavailable is not None:
            raise self._unavailable

    def _note_report(self, identifier: str, level: str, report: Mapping[str, Any]) -> None:
        message, data = documents.summary(report), {"report": dict(report)}
        queue.note(self._database, identifier, level, message, data, once=True)

    def failed(self, jobs: Sequence[Job], error: ForewordError) -> None:
        """What the run broke off at is no fault of the server's (see `is_servers`): end it, or try it again.

        The job whose fault it is pays, and no other. Where that is nobody's in particular, each of them is
        tried again alone. None is tried for ever.
        """
        whose = jobs[0].id if len(jobs) == 1 else error.owner
        if whose is None:
            queue.release(self._database, self._worker, orderly=False)
        elif isinstance(error, _OWNERS_TO_READ):
            self._fail(whose, error)
        else:
            reason = ""
            if isinstance(error, errors.CheckpointMismatch):
                try:
                    self._drop_checkpoints(whose)
                except CannotWrite as failure:
                    error = failure
            if isinstance(error, (StoreUnavailable, CannotWrite)):
                reason = "a file of this job could not be read or written; the server's log says which"
            queue.release(self._database, self._worker, orderly=True, at_fault=whose, reason=reason)

    def _leave(self, identifier: str, step: int) -> None:
        """A paused job has left the run, its checkpoint written."""
        self._note_held_back(identifier)
        with self._heartbeat.ending(identifier):
            queue.leave(self._database, self._worker, identifier, step, self._heartbeat.used[identifier])
            self._heartbeat.let_go(identifier)
        logs.event("job paused", job=identifier, step=step)

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
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            pass
        except OSError as error:  # it would be found again the next time, and so for ever
            failure = CannotWrite(f"{folder} could not be removed: {error.strerror}")
            failure.owner = identifier
            raise failure from error
        goes_on = "goes on from the stored one" if another else "begins anew"
        message = f"the checkpoint can't be used; training {goes_on}"
        queue.note(self._database, identifier, "warn", message)

    def _save(self, identifier: str, path: Path) -> None:
        """Copy a checkpoint into the store; training goes on where that fails, and the next one is tried."""
        try:
            checkpoints.save(self._store, self._worker, self._jobs[identifier], path)
        except queue.NotClaimed:  # the heartbeat notices, too, and stops the run
            logs.event("checkpoint of a job that is gone", job=identifier)
        except (StoreUnavailable, CannotWrite, OSError) as error:
            logs.failure("checkpoint not stored", error, job=identifier)

    def _examples(self, job: Job, identifier: str, what: str) -> list[Example | Preference]:
        record = uploads.find(self._database, job.owner, identifier)
        content = uploads.content(self._database, job.owner, identifier)
        summary = Summary()
        examples = uploads.parse(
            content,
            record.filename,
            summary=summary,
            learned=learned_by(job.settings.get("method")),
            **job.settings.get("reading", {}),
        )
        queue.note(self._database, job.id, "info", f"{what} file: read {summary}", once=True)
        return examples

    def _finish(self, identifier: str, prefix: Prefix, results: Sequence[tuple[Upload, bytes]] = ()) -> None:
        """Store a job's prefix and files and end the job: all of it, and only while it is this worker's."""
        job = self._jobs[identifier]
        self._note_held_back(identifier)
        if not math.isfinite(prefix.origin.dev_loss or 0.0):
            return self._fail(identifier, errors.NotFinite("the validation loss was no number at every step"))
        # The same bytes however often the job was begun, so that putting them twice is no second version.
        final = dataclasses.replace(prefix, created=job.created, labels={**prefix.labels, "job": job.id})
        used = self._heartbeat.used[identifier]
        files = list(results)
        unneeded: str | None = None

        def end(connection: Connection, version: Version) -> None:
            nonlocal unneeded
            unneeded = queue.succeed(connection, self._worker, identifier, version.reference, used)
            for record, content in files:
                uploads.keep(connection, record, content)

        def put() -> None:
            limit = checkpoints.stored_bytes_of(job)
            self._store.as_owner(job.owner).put(f"{job.owner}/{job.name}", final, limit=limit, also=end)

        try:
            files += [] if is_document(job.settings) else self._metrics(job)
            with self._heartbeat.ending(identifier):
                try:
                    put()
                except errors.StorageLimitExceeded:
                    if not checkpoints.drop(self._store, identifier):  # the prefix is worth more than that
                        raise
                    put()
                self._heartbeat.let_go(identifier)
        except queue.NotClaimed:  # cancelled, forgotten, or another worker's
            self._heartbeat.let_go(identifier)
            unneeded = final.digest
        except errors.StorageLimitExceeded as error:
            self._fail(identifier, error)
            unneeded = final.digest
        except (StoreUnavailable, CannotWrite, CannotRead) as error:
            logs.failure("prefix not stored", error, job=identifier)
            error.owner, self._unavailable = identifier, error
        else:
            logs.event("job succeeded", job=identifier, steps=prefix.origin.steps)
        if unneeded is not None:
            checkpoints.remove_file(self._store, unneeded)

    def _metrics(self, job: Job) -> list[tuple[Upload, bytes]]:
        """The file of metrics that a job ends in; none where the log of its run is gone.

        Raises:
            CannotRead: the log can't be read now; the job goes on later.
        """
        log = owner_folder(self._folder, job.id) / "log.jsonl"
        try:
            return [metrics_file(job, log)]
        except FileNotFoundError as error:
            logs.failure("metrics not read", error, job=job.id)
            return []
        except OSError as error:
            raise CannotRead(f"{log}: {error.strerror}") from error

    def _fail(self, identifier: str, error: Exception) -> None:
        self._note_held_back(identifier)
        readable = isinstance(error, _OWNERS_TO_READ)
        message = (
            _in_words_of_api(error)
            if readable
            else "the server could not go on with this job; its log says why"
        )
        kind = type(error).__name__ if readable else "server_error"
        used = self._heartbeat.used.get(identifier)
        unneeded: str | None = None
        with self._heartbeat.ending(identifier):
            with contextlib.suppress(queue.NotClaimed):  # cancelled or forgotten: nobody asks why it failed
                unneeded = queue.fail(self._database, self._worker, identifier, kind, message, used)
            self._heartbeat.let_go(identifier)
        if unneeded is not None:
            checkpoints.remove_file(self._store, unneeded)
        logs.failure("job failed", error, job=identifier)

    def _progress(self, progress: Progress) -> None:
        identifier = progress.owner or ""
        if progress.tokens is not None:
            self._heartbeat.used[identifier] = Used(progress.step, progress.tokens)
        if progress.done:
            return  # what is being done was told when it began
        if progress.note is not None:
            # A note of going on names the file, which is nothing to an owner.
            note = progress.note.split(": ", 1)[0] if progress.note.startswith("going on") else progress.note
            queue.note(self._database, identifier, "info", note, once=note is progress.note)
            # Until the next step: what a document is measured by comes behind the last.
            self._heartbeat.training = self._heartbeat.training and not self._heartbeat.hears
            return
        self._heartbeat.training = True
        if self._heartbeat.hears and identifier not in self._first_steps:
            self._heartbeat.steps_begin()
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
            **{f"train_{name}": _number(value) for name, value in progress.measures.items()},
            **{f"full_valid_{name}": _number(value) for name, value in progress.dev_measures.items()},
        }
        losses = {"training loss": progress.loss, "validation loss": progress.dev_loss if evaluated else None}
        if evaluated and "reward_accuracy" in progress.dev_measures:
            losses["validation reward accuracy"] = progress.dev_measures["reward_accuracy"]
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


_FULL = (errno.ENOSPC, errno.EDQUOT)
_PROBE = b"is there room for files?"


def is_servers(store: PrefixStore, error: StoreUnavailable | CannotWrite) -> bool:
    """Whether an error is about the server's database or disks, and not about one job's own files.

    A full disk may have room for what is tried here, and a database that was away may be back; what they
    said is enough. Anything else is the server's if no job could read and write now.
    """
    cause = error.__cause__
    if isinstance(cause, SQLAlchemyError) or (isinstance(cause, OSError) and cause.errno in _FULL):
        return True
    key = new_key(hashlib.sha256(_PROBE).hexdigest())
    folder = store.job_folder() / f"@probe-{secrets.token_hex(4)}"  # left by a kill, it goes as a job's would
    try:
        check_there(store.blobs)
        store.blobs.write(key, _PROBE)
        store.blobs.remove(key)
        prepare_folder(folder)
        files.write_bytes(folder / "probe", _PROBE)
    except (StoreUnavailable, CannotWrite):
        return True
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return False


def _in_words_of_api(error: Exception) -> str:
    """What a job's owner is told of an error that is theirs."""
    if isinstance(error, Refused):
        return error.message
    answer = refused(error) if isinstance(error, ForewordError) else None
    return str(error) if answer is None or answer.status >= 500 else answer.message
