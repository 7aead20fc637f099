"""/v1/fine_tuning/jobs: training and documents, whose result is a prefix that is served at once."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request

from foreword.documents.reading import SUFFIXES
from foreword.errors import BadExamples, UsageError
from foreword.examples import Example, Preference
from foreword.examples.forms import Learned
from foreword.prefix import Prefix
from foreword.serving.api import schemas
from foreword.serving.api.models import describe
from foreword.serving.api.pools import FairRoute
from foreword.serving.api.prompts import find_prefix
from foreword.serving.api.schemas import ERRORS, seconds_of
from foreword.serving.api.state import ServerState, identity_of, server_of
from foreword.serving.errors import Refused, refused, shown
from foreword.serving.jobs import checkpoints, queue, uploads
from foreword.serving.jobs import settings as job_settings
from foreword.serving.jobs.queue import Job
from foreword.serving.jobs.results import result_files
from foreword.serving.jobs.settings import (
    NO_ZERO,
    DocumentMethod,
    JobBody,
    OpenAIHyperparameters,
    OpenAIPreferenceHyperparameters,
)
from foreword.serving.requests import JOINS
from foreword.store import PrefixStore
from foreword.store.database import Database
from foreword.store.names import parse_name
from foreword.store.schema import now

router = APIRouter(tags=["fine-tuning"], prefix="/v1/fine_tuning/jobs", route_class=FairRoute)
JobId = Annotated[str, Path(max_length=40, pattern=NO_ZERO)]
Limit = Annotated[int, Query(ge=1, le=1000)]
After = Annotated[str | None, Query(max_length=40, pattern=NO_ZERO)]

_OF_PREFERENCES = "full_valid_reward_"
"""How metrics begin that a job on preferences has beside those of any job."""


@router.post("", response_model=schemas.JobAnswer, responses=ERRORS)
def create_job(request: Request, body: JobBody) -> Any:
    """Make a prefix of an uploaded file; it will be called by its owner's name and `suffix`."""
    server, identity = server_of(request), identity_of(request)
    database, limits = server.store.database, identity.limits
    owner = identity.writer("jobs")
    identifier = f"ftjob-{secrets.token_hex(12)}"
    _, name = parse_name(f"{owner}/{body.suffix or identifier}")
    if body.model != server.served.name and JOINS in body.model:
        raise Refused(
            400,
            f"{shown(body.model)} joins several prefixes, and training starts from one; name one of them, or "
            "the base model",
            code="invalid_value",
            param="model",
        )
    start = find_prefix(server, identity.view, body.model)
    # The version, not a name that may mean another one when the job's turn comes.
    reference = None if start is None else describe(identity.view, body.model).version.reference
    asked: dict[str, Any] = {}
    if (method := body.document) is not None:
        _check_document_files(database, owner, body, method)
        previous = _previous(server, identity.view, method.previous)
        settings = job_settings.choose_document(server.served, body, method, start, previous)
        asked["document"] = method.model_dump(exclude_none=True)
        asked["hyperparameters"] = asked["document"].get("hyperparameters", {})
    else:
        files = _example_files(database, owner, body)
        reading = job_settings.reading_of(body)
        learned = job_settings.learned_by(body.method_type)
        begun = [_beginning(database, file, param, learned, reading) for param, file in files.items()]
        if len({style for _, style in begun}) > 1:
            raise Refused(
                400,
                "one file has conversations, the other source and target; give two of a kind",
                param="validation_file",
            )
        settings = job_settings.choose(server.served, body, begun[0][1], start, reference)
        for param, (examples, _) in zip(files, begun, strict=True):
            job_settings.try_template(server.served, settings["template"], examples, param)
        asked["hyperparameters"] = body.chosen.model_dump(exclude_none=True)
    record = Job(
        id=identifier,
        owner=owner,
        created=now(),
        state="queued",
        model=reference or server.served.name,
        name=name,
        training_file=body.training_file,
        validation_file=body.validation_file,
        settings=settings,
        # A document is a run of its own.
        alike=job_settings.run_key(settings if method is None else {"job": identifier}),
        asked=asked
        | {
            "metadata": body.metadata,
            "stored_bytes": limits.stored_bytes,  # for when the job ends, which no request is there to say
        },
    )
    queue.add(database, identity.caller, record, limit=limits.jobs, stored_bytes=limits.stored_bytes)
    return _answer(record)


@router.get("", response_model=schemas.JobList, responses=ERRORS)
def list_jobs(request: Request, limit: Limit = 20, after: After = None) -> Any:
    """The caller's jobs, newest first."""
    server, owner = server_of(request), identity_of(request).owner("jobs")
    jobs, more = queue.listed(server.store.database, owner, limit, after)
    return schemas.JobList(data=_with_results(server.store.database, jobs), has_more=more)


@router.get("/{job_id}", response_model=schemas.JobAnswer, responses=ERRORS)
def retrieve_job(request: Request, job_id: JobId) -> Any:
    """One job."""
    server, owner = server_of(request), identity_of(request).owner("jobs")
    record = queue.find(server.store.database, owner, job_id)
    return _with_results(server.store.database, [record])[0]


@router.post("/{job_id}/cancel", response_model=schemas.JobAnswer, responses=ERRORS)
def cancel_job(request: Request, job_id: JobId) -> Any:
    """Stop a job that has not ended; nothing of it is kept."""
    server, identity = server_of(request), identity_of(request)
    owner = identity.writer("jobs")
    record = queue.cancel(server.store.database, identity.caller, owner, job_id)
    checkpoints.drop_of_ended(server.store)
    return _answer(record)


@router.post("/{job_id}/pause", response_model=schemas.JobAnswer, responses=ERRORS)
def pause_job(request: Request, job_id: JobId) -> Any:
    """Let a job wait until it is resumed; one in training stops after the step under way."""
    server, identity = server_of(request), identity_of(request)
    owner = identity.writer("jobs")
    return _answer(queue.pause(server.store.database, identity.caller, owner, job_id))


@router.post("/{job_id}/resume", response_model=schemas.JobAnswer, responses=ERRORS)
def resume_job(request: Request, job_id: JobId) -> Any:
    """Put a paused job back into the queue; training goes on where it was."""
    server, identity = server_of(request), identity_of(request)
    owner = identity.writer("jobs")
    return _answer(queue.resume(server.store.database, identity.caller, owner, job_id))


@router.get("/{job_id}/events", response_model=schemas.JobEvents, responses=ERRORS)
def list_events(request: Request, job_id: JobId, limit: Limit = 20, after: After = None) -> Any:
    """What has happened to a job, newest first."""
    server, owner = server_of(request), identity_of(request).owner("jobs")
    queue.find(server.store.database, owner, job_id)
    before = None
    if after is not None:
        number = after.removeprefix("ftevent-")
        if not (number.isascii() and number.isdigit() and len(number) < 18):
            raise Refused(
                400, "after is no event; expected the id of the last one on the page before", param="after"
            )
        before = int(number)
    events, more = queue.events(server.store.database, job_id, limit, before)
    data = [
        schemas.JobEvent(
            id=f"ftevent-{row['id']}",
            created_at=seconds_of(row["at"]),
            level=row["level"],
            message=row["message"],
            type="message" if row["data"] is None else "metrics",
            data=row["data"],
        )
        for row in events
    ]
    return schemas.JobEvents(data=data, has_more=more)


@router.get("/{job_id}/checkpoints", response_model=schemas.JobCheckpoints, responses=ERRORS)
def list_checkpoints(
    request: Request,
    job_id: JobId,
    limit: Limit = 10,
    after: Annotated[str | None, Query(max_length=60)] = None,
) -> Any:
    """The step whose keys and values became the prefix; none before the job is done."""
    server, identity = server_of(request), identity_of(request)
    record = queue.find(server.store.database, identity.owner("jobs"), job_id)
    data = []
    if record.result is not None and after is None:
        origin = describe(identity.view, record.result).version.facts["origin"]
        steps = origin["steps"] or 0  # none of a document whose own keys and values were kept
        measured = {"step": float(steps)}
        if origin["dev_loss"] is not None:
            measured["full_valid_loss"] = origin["dev_loss"]
            metrics = queue.metrics_at(server.store.database, record.id, steps)
            measured |= {name: value for name, value in metrics.items() if name.startswith(_OF_PREFERENCES)}
        data.append(
            schemas.JobCheckpoint(
                id=f"ftckpt-{record.id.removeprefix('ftjob-')}",
                created_at=seconds_of(record.finished or record.created),
                fine_tuned_model_checkpoint=record.result,
                fine_tuning_job_id=record.id,
                metrics=measured,
                step_number=steps,
            )
        )
    only = data[0].id if data else None
    return schemas.JobCheckpoints(data=data, first_id=only, last_id=only)


def _example_files(database: Database, owner: str, body: JobBody) -> dict[str, uploads.Upload]:
    """The files of a job that trains on examples or preferences, by field.

    Raises:
        Refused: absent; not what the method learns from.
    """
    files = {}
    for param in ("training_file", "validation_file"):
        if (identifier := getattr(body, param)) is None:
            continue
        files[param] = file = uploads.find(database, owner, identifier, param=param)
        if file.purpose != "fine-tune":
            raise Refused(
                400,
                f"{param} has the purpose {file.purpose}; expected a file of examples, sent with fine-tune"
                + (", or the method document" if file.style == "document" else ""),
                param=param,
            )
        if file.style != "records" and not body.chosen.fields:
            _check_method(file, param, body)
    return files


def _check_method(file: uploads.Upload, param: str, body: JobBody) -> None:
    """Refuse a file of what the job's method does not learn from. Raises Refused."""
    if file.preferences != (body.method_type == "dpo"):
        held, other = ("preferences", "dpo") if file.preferences else ("examples", "supervised")
        raise Refused(
            400,
            f"{param} holds {held}, and the method {body.method_type} does not learn from these; take "
            f"the method {other}, or another file",
            code="invalid_file",
            param=param,
        )


def _beginning(
    database: Database, file: uploads.Upload, param: str, learned: Learned, reading: dict[str, Any]
) -> tuple[list[Example | Preference], str]:
    """The first examples of a file as a job reads it, and whether they are text or chat.

    Raises:
        Refused: 400, examples of another form than `reading` says, or of no form that is known.
    """
    try:
        most = (job_settings.TRIED_BYTES, job_settings.TRIED_EXAMPLES)
        examples = uploads.beginning(database, file.owner, file.id, *most, learned=learned, **reading)
    except (BadExamples, UsageError) as error:
        raise Refused(400, refused(error).message, code="invalid_file", param=param) from error
    if not reading and file.style != "records":
        return examples, "chat" if file.chats else "text"
    return examples, "text" if all(isinstance(each.source, str) for each in examples) else "chat"


_KINDS = {
    "records": "a file whose fields have no known form",
    "document": "a document",
    "report": "a report",
    "metrics": "a table of metrics",
    "preferences": "a file of preferences",
    "chat-preferences": "a file of preferences",
}


def _check_document_files(database: Database, owner: str, body: JobBody, method: DocumentMethod) -> None:
    """Refuse the files of a document's job that are absent or of another kind. Raises Refused."""
    file = uploads.find(database, owner, body.training_file, param="training_file")
    if file.style != "document":
        raise Refused(
            400,
            f"training_file has the purpose {file.purpose} and is no document; expected one of {SUFFIXES}, "
            "sent with user_data",
            param="training_file",
        )
    beside = (
        ("validation_file", body.validation_file, job_settings.MOST_QUESTIONS),
        ("method.document.conversations", method.conversations, job_settings.LARGEST_OF_DOCUMENTS["draw"]),
    )
    for param, identifier, most in beside:
        if identifier is None:
            continue
        file = uploads.find(database, owner, identifier, param=param)
        if file.style not in ("text", "chat", "conversations"):
            raise Refused(
                400,
                f"{param} is {_KINDS[file.style]}; expected questions and answers as JSON lines: examples "
                "sent with fine-tune, or a .jsonl file sent with user_data",
                param=param,
            )
        if file.examples > most:
            raise Refused(400, f"{param} has {file.examples} answers; expected at most {most}", param=param)


def _previous(server: ServerState, view: PrefixStore, name: str | None) -> tuple[str, Prefix] | None:
    """Version and prefix of an earlier state of a document. Raises Refused: none that can be used here."""
    if name is None:
        return None
    try:
        if (prefix := find_prefix(server, view, name)) is None:
            raise Refused(400, f"{shown(name)} is the base; expected a document's prefix, or nothing")
        return describe(view, name).version.reference, prefix
    except Refused as error:
        error.param = "method.document.previous"
        raise


def _with_results(database: Database, records: Sequence[Job]) -> list[schemas.JobAnswer]:
    """Jobs of one owner, with those of their result files that are there: some were deleted, and jobs of
    earlier releases ended in fewer."""
    ended = [record for record in records if record.state == "succeeded"]
    files = {record.id: list(result_files(record.id, record.settings)) for record in ended}
    named = [name for each in files.values() for name in each]
    there = uploads.present(database, records[0].owner, named) if named else set()
    return [_answer(record, [f for f in files.get(record.id, ()) if f in there]) for record in records]


def _answer(record: Job, files: Sequence[str] = ()) -> schemas.JobAnswer:
    hyperparameters = record.asked["hyperparameters"]
    if job_settings.is_document(record.settings):
        method = {"type": "document", "document": record.asked["document"]}
    else:
        # OpenAI's own are always shown, the others where they were given.
        own = OpenAIPreferenceHyperparameters if "method" in record.settings else OpenAIHyperparameters
        hyperparameters = {**dict.fromkeys(own.model_fields, "auto"), **hyperparameters}
        kind = record.settings.get("method", "supervised")
        method = {"type": kind, kind: {"hyperparameters": hyperparameters}}
    return schemas.JobAnswer(
        id=record.id,
        created_at=seconds_of(record.created),
        error=None if record.error is None else schemas.JobError(**record.error),
        fine_tuned_model=record.result,
        finished_at=None if record.finished is None else seconds_of(record.finished),
        hyperparameters=hyperparameters,
        method=method,
        model=record.model,
        organization_id=record.owner,
        result_files=list(files),
        seed=record.settings["seed"],
        status=record.state,  # type: ignore[arg-type]
        trained_tokens=record.trained_tokens,
        training_file=record.training_file,
        validation_file=record.validation_file,
        metadata=record.asked["metadata"],
    )
