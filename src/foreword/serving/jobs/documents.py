"""Jobs whose file is a document: it is read, becomes a prefix, and its report a file of the owner's."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from foreword.base.base_model import BaseModel
from foreword.documents.compile import check_base, compile_document
from foreword.documents.conversations import (
    Conversation,
    conversations_in,
    examples_in,
    saved_lines,
)
from foreword.documents.reading import Document, document_from_bytes
from foreword.documents.settings import DocumentSettings
from foreword.documents.studies import chunks_of, drawn_for
from foreword.examples import Example
from foreword.examples.records import Line, lines_of
from foreword.prefix import Prefix
from foreword.serving.errors import shown
from foreword.serving.jobs import uploads
from foreword.serving.jobs.queue import Job
from foreword.serving.jobs.results import result_files
from foreword.serving.jobs.uploads import Upload
from foreword.store.database import Database
from foreword.training.run_log import Progress
from foreword.training.train import TrainingStopped


@dataclass(frozen=True)
class Compiled:
    """What a document's job ends in.

    Attributes:
        files: with their content, for the owner.
    """

    prefix: Prefix
    files: Sequence[tuple[Upload, bytes]]


def compile_job(
    database: Database,
    base: BaseModel,
    job: Job,
    folder: Path,
    *,
    previous: Prefix | None,
    on_progress: Callable[[Progress], None],
    on_checkpoint: Callable[[Path], None],
) -> Compiled:
    """Read a job's document and make a prefix of it.

    Args:
        folder: of the job's checkpoints.
        previous: of an earlier state of the document, to go on from.

    Raises:
        BadDocument, BadConversations, BadExamples: a file that can't be used.
        Refused: a file that is gone.
        HarmExceeded, ReportWorse, UsageError, WindowExceeded, GeometryMismatch, WrongBaseModel,
        CheckpointMismatch, DamagedCheckpoint, TrainingDiverged, TrainingStopped: as `compile_document`.
    """
    settings = DocumentSettings.from_mapping(job.settings["document"])

    def note(text: str) -> None:
        on_progress(Progress(0, settings.steps, note=text))

    check_base(base)
    note("reading the document")
    file = uploads.find(database, job.owner, job.training_file)
    document = document_from_bytes(uploads.content(database, job.owner, file.id), file.filename)
    questions = None
    if job.validation_file is not None:
        questions = list(_examples(database, job, job.validation_file))
    conversations, kept = _conversations(database, base, job, document, settings, note)
    prefix = compile_document(
        base,
        document.text,
        conversations=conversations,
        questions=questions,
        previous=previous,
        gate=job.settings.get("gate", False),  # which jobs of an earlier release do not have
        checkpoint_dir=folder,
        on_progress=on_progress,
        on_checkpoint=on_checkpoint,
        **job.settings["document"],
    )
    report = json.dumps({"document": file.filename, **prefix.report}, indent=1) + "\n"
    contents = {"report": ("report.json", report), "conversations": ("conversations.jsonl", kept)}
    files = []
    for identifier, style in result_files(job.id, job.settings).items():
        name, text = contents[style]
        content, examples = text.encode(), len(conversations or ()) if style == "conversations" else 0
        files.append((uploads.made(job.owner, name, style, content, examples, identifier), content))
    return Compiled(prefix, files)


def _conversations(
    database: Database,
    base: BaseModel,
    job: Job,
    document: Document,
    settings: DocumentSettings,
    note: Callable[[str], None],
) -> tuple[tuple[Conversation, ...] | None, str]:
    """The owner's conversations, or drawn ones if they are to be kept, and the file that keeps them.

    None leaves it to `compile_document` to draw them.
    """
    given: str | None = job.settings["conversations"]
    keep: bool = job.settings["keep_conversations"]
    if given is None and not keep:
        return None, ""
    chunks = chunks_of(base, document.text, settings)
    made: Mapping[str, Any] = {"drawn": settings.draw, "seed": settings.seed}
    if given is None:
        found = tuple(drawn_for(chunks, settings))
    else:
        lines, name = _lines(database, job, given)
        read = conversations_in(lines, name, document.text, chunks)
        found, made = read.conversations, read.made
        if left_out := read.rejected.total():
            reasons = ", ".join(f"{count} ({why})" for why, count in sorted(read.rejected.items()))
            note(f"{left_out} conversations do not pass the check against the text: {reasons}")
    return found or None, "".join(saved_lines(found, document.text, chunks, made)) if keep else ""


def _examples(database: Database, job: Job, identifier: str) -> Iterator[Example]:
    return examples_in(*_lines(database, job, identifier))


def _lines(database: Database, job: Job, identifier: str) -> tuple[Iterator[Line], str]:
    name = shown(uploads.find(database, job.owner, identifier).filename)
    return lines_of(io.BytesIO(uploads.content(database, job.owner, identifier)), name), name


def summary(report: Mapping[str, Any]) -> str:
    """The figures of a report in a line."""
    share, harm = report["recovered_share"], report["harm"]
    recovered = "nothing to recover" if share is None else f"recovered share {share:.2f}"
    return f"report: {recovered} of {report['answers']} answers, harm {harm:.4f}"


@contextlib.contextmanager
def stops_at_once() -> Iterator[None]:
    """Let the signals that stop training stop what is around it, too, such as the reading of a PDF.

    Raises:
        TrainingStopped: in the midst of it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # where Python allows no signal handlers
        return
    former: dict[int, Any] = {}

    def stop(number: int, frame: FrameType | None) -> None:
        if callable(former[number]):
            former[number](number, frame)
        raise TrainingStopped(0, None)

    former |= {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in former:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
