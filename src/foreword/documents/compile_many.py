"""compile_documents: many texts in one run, each ending in a prefix of its own.

One behind the other, unless they are to see each other: a step of one document fills the passes of a CPU
already. Two documents of 1,100 tokens took 142 s of a core apart and 140 s in shared passes (20 steps each,
SmolLM2-135M-Instruct).

Together, each document has a trainer, all of them at the same step, and checkpoints of each. What stands
beside a row is decided by the seed, the step and the row alone, so a resumed run needs no saved state for it;
documents whose newest checkpoints are of different steps go on from the newest step that all have.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack
from urllib.parse import quote

from foreword.base.base_model import BaseModel
from foreword.documents.compile import DocumentRun, as_start, begin, check_base, compile_document
from foreword.documents.conversations import text_digest
from foreword.documents.distillation import DistilledExample, MixedVisibility, VisibleExample
from foreword.documents.report import Question
from foreword.documents.settings import (
    TOGETHER,
    DocumentSettings,
    DocumentsOptions,
    TogetherSettings,
    documents_settings,
)
from foreword.documents.studies import Studies
from foreword.errors import (
    CannotWrite,
    CheckpointMismatch,
    DocumentsFailed,
    ForewordError,
    TrainingDiverged,
    UnsupportedArchitecture,
    UsageError,
    WindowExceeded,
)
from foreword.examples import Example
from foreword.prefix import Prefix
from foreword.prefix_file import check_description
from foreword.training.checkpoint import list_checkpoints
from foreword.training.loop import run
from foreword.training.run_log import Progress, RunLog
from foreword.training.train import check_folder, stop_on_interrupt
from foreword.training.train_many import owner_folder, stopped, tokens_of_pass
from foreword.training.trainer import Trainer
from foreword.validation import checks_arguments


@checks_arguments
def compile_documents(
    base: BaseModel,
    documents: Mapping[str, str] | Iterable[tuple[str, str]],
    *,
    checkpoint_dir: str | Path | Callable[[str], Path] | None = None,
    checkpoint_every: int | None = None,
    restart: bool = False,
    labels: dict[str, str] | None = None,
    licence: str | None = None,
    into: Callable[[str, Prefix], None] | None = None,
    on_failure: Callable[[str, ForewordError], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    **options: Unpack[DocumentsOptions],
) -> dict[str, Prefix]:
    """A prefix for each of many texts; one that fails is named at the end, and the others go on.

    With `together` all train in one run, some rows behind other documents' prefixes, too, so that prefixes
    can be joined: up to `neighbours` others beside their own, in a share `mixed` of the rows. All texts must
    be there before it begins, and prefixes come at its end.

    Args:
        documents: texts by name, or an iterable of (name, text) that is read as others end.
        checkpoint_dir: one folder per document in it, or a function that names a document's folder.
        restart: checkpoints of another run are removed; else their document fails.
        into: called with (name, prefix) as each is done, instead of keeping it for the result.
        on_failure: called with (name, error) as each fails.
        on_progress: as for `train`; `owner` is the document's name.
        checkpoint_every, labels, licence, options: as for `compile_document`.

    Raises:
        DocumentsFailed: some documents can't be compiled; it holds the other documents' prefixes.
        UsageError: an option out of range, a name that comes twice, a base that takes no documents; together,
            fewer than two documents or another method than "studied".
        UnsupportedArchitecture, WindowExceeded, CheckpointMismatch, TrainingDiverged: only together, where
            they end the run: a base whose prefixes can't be joined, no room for them, checkpoints of another
            run, and a loss that became NaN or infinite.
        CannotWrite: a checkpoint can't be written.
        TrainingStopped: Ctrl-C; the same call goes on with that document.
    """
    together, settings = documents_settings(options)
    check_description({"labels": labels, "licence": licence})
    check_folder(checkpoint_dir, checkpoint_every)
    check_base(base)
    report = on_progress or (lambda progress: None)
    prefixes: dict[str, Prefix] = {}
    errors: dict[str, ForewordError] = {}

    def failed(name: str, error: ForewordError) -> None:
        errors[name] = error
        if on_failure is not None:
            on_failure(name, error)

    def done(name: str, prefix: Prefix) -> None:
        if into is not None:
            into(name, prefix)
        else:
            prefixes[name] = prefix

    def compiled(name: str, text: str, folder: Path | None) -> Prefix:
        return compile_document(
            base,
            text,
            checkpoint_dir=folder,
            checkpoint_every=checkpoint_every,
            labels=labels,
            licence=licence,
            on_progress=lambda progress: report(dataclasses.replace(progress, owner=name)),
            **settings.to_json(),
        )

    named = _each_once(documents.items() if isinstance(documents, Mapping) else documents)
    if together.together:
        _compile_together(
            base,
            dict(named),
            settings,
            together,
            folder_of=lambda name: _folder(checkpoint_dir, name),
            checkpoint_every=checkpoint_every,
            restart=restart,
            on_prefix=lambda name, prefix: done(name, prefix.relabel(licence=licence, labels=labels or {})),
            on_failure=failed,
            report=report,
        )
        named = iter(())
    for name, text in named:
        report(Progress(0, settings.steps, owner=name, note="begins"))
        folder = _folder(checkpoint_dir, name)
        try:
            try:
                prefix = compiled(name, text, folder)
            except CheckpointMismatch:
                if not restart or folder is None:
                    raise
                for checkpoint in list_checkpoints(folder):
                    checkpoint.unlink()
                prefix = compiled(name, text, folder)
        except CannotWrite:  # the disk's fault, not the document's
            raise
        except ForewordError as error:
            failed(name, error)
            continue
        done(name, prefix)
    if errors:
        raise DocumentsFailed(errors, prefixes)
    return prefixes


def _each_once(documents: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Names and texts as they come.

    Raises:
        UsageError: a name that comes twice.
    """
    seen: set[str] = set()
    for name, text in documents:
        if name in seen:
            raise UsageError(f"document {name!r} comes twice; give each a name of its own")
        seen.add(name)
        yield name, text


def is_result(
    prefix: Prefix,
    base: BaseModel,
    text: str,
    settings: DocumentSettings,
    labels: Mapping[str, str] | None = None,
    licence: str | None = None,
    together: str | None = None,
) -> bool:
    """Whether a prefix is what a text becomes under these settings, drawn conversations understood.

    A limit of harm changes no prefix: one made under another limit is held against this one.

    Args:
        together: `together_id` of the run that it is of, if it is of one.
    """
    recipe = prefix.recipe.get("document", {})
    expected = settings.to_json() | {"sha256": text_digest(text)}
    most, harm = expected.pop("max_harm", None), prefix.report.get("harm")
    same = all(name in recipe and recipe[name] == value for name, value in expected.items())
    same = same and prefix.recipe.get(TOGETHER) == together
    same = same and (dict(prefix.labels), prefix.licence) == (dict(labels or {}), licence)
    allowed = most is None or (isinstance(harm, float) and harm <= most)
    return prefix.base.fingerprint == base.fingerprint and same and allowed


def _folder(checkpoint_dir: str | Path | Callable[[str], Path] | None, name: str) -> Path | None:
    if checkpoint_dir is None or callable(checkpoint_dir):
        return None if checkpoint_dir is None else checkpoint_dir(name)
    return owner_folder(Path(checkpoint_dir), name)


# -- together ----------------------------------------------------------------------------------------


def together_id(
    base: BaseModel, texts: Iterable[str], settings: DocumentSettings, together: TogetherSettings
) -> str:
    """What all prefixes of a run have in their recipe: of its documents, in their order, and its settings."""
    of_run = settings.to_json() | dataclasses.asdict(together)
    del of_run["max_harm"]  # which changes no prefix
    of_run |= {"base": base.fingerprint, "documents": [text_digest(text) for text in texts]}
    return hashlib.sha256(json.dumps(of_run, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _Document:
    """One document of the run, read and ready to be trained.

    Attributes:
        start: what training begins at.
        rows, dev: conversations to train on, and those held out.
        about, answers: what the report is about, and what harm is measured on.
    """

    name: str
    run: DocumentRun
    made: Studies
    start: Prefix
    rows: list[DistilledExample]
    dev: list[DistilledExample]
    about: list[Question]
    answers: tuple[Example, ...]


def _compile_together(
    base: BaseModel,
    texts: Mapping[str, str],
    settings: DocumentSettings,
    together: TogetherSettings,
    *,
    folder_of: Callable[[str], Path | None],
    checkpoint_every: int | None,
    restart: bool,
    on_prefix: Callable[[str, Prefix], None],
    on_failure: Callable[[str, ForewordError], None],
    report: Callable[[Progress], None],
) -> None:
    """A prefix for each of several texts, trained in sight of each other.

    A document that can't be begun is left out of the run, and the others go on without it.

    Args:
        folder_of: a document's folder of checkpoints; None keeps nothing.
        restart: checkpoints of another run are removed.
        on_prefix, on_failure: called with each document's prefix at the end, or with what is wrong with it.

    Raises:
        UsageError: fewer than two documents, or prefixes of one token, of which nothing would be left behind
            another.
        UnsupportedArchitecture: the base's prefixes can't be joined.
        WindowExceeded: joined prefixes that leave no room for the conversations.
        CheckpointMismatch: checkpoints of another run.
        TrainingDiverged: the loss of one document became NaN or infinite.
        TrainingStopped: Ctrl-C; the same call goes on.
    """
    if len(texts) < 2:
        raise UsageError(
            f"there are {len(texts)} documents, and together takes at least 2; a single one is compiled alone"
        )
    try:
        _ = base.key_rotations
    except UnsupportedArchitecture as error:
        raise UnsupportedArchitecture(f"documents can't be trained together: {error}") from error
    identity = together_id(base, texts.values(), settings, together)
    documents = []
    for name, text in texts.items():
        report(Progress(0, settings.steps, owner=name, note="begins"))
        try:
            documents.append(_read(base, name, text, settings, folder_of(name), report))
        except CannotWrite:  # of all, not of this document
            raise
        except ForewordError as error:
            on_failure(name, error)
    if len(documents) < 2:
        for document in documents:
            on_failure(document.name, UsageError("no other document is left to be trained together with it"))
        return
    _check_room(base, documents, together)

    def logs() -> list[RunLog]:
        return _run_logs(documents, identity, together, folder_of, checkpoint_every, report)

    try:
        run_logs = logs()
    except CheckpointMismatch:
        if not restart:
            raise
        for document in documents:
            if (folder := folder_of(document.name)) is not None:
                for checkpoint in list_checkpoints(folder):
                    checkpoint.unlink()
        run_logs = logs()
    _train(base, run_logs, together, settings.seed)
    for document, run_log in zip(documents, run_logs, strict=True):
        try:
            prefix = _result(document, run_log.trainer, identity)
        except ForewordError as error:
            on_failure(document.name, error)
        else:
            on_prefix(document.name, prefix)


def _read(
    base: BaseModel,
    name: str,
    text: str,
    settings: DocumentSettings,
    folder: Path | None,
    report: Callable[[Progress], None],
) -> _Document:
    """All of a document that is made before training. Raises as `compile_document`."""
    document = begin(
        base, text, settings, folder, lambda progress: report(dataclasses.replace(progress, owner=name))
    )
    if document.length < 2:
        raise UsageError(
            "the prefix would have one virtual token, and the first of each goes when it is joined behind "
            "another (the attention sink); take a length of 2 or more"
        )
    check_description({"recipe": document.recipe | {TOGETHER: "0" * 64}})
    made = document.studies(None, (), own_questions=False)
    about, answers = document.questions(made, None), document.unrelated()
    start = as_start(document.start(made))
    return _Document(name, document, made, start, *document.rows(made, folder), about, answers)


def _check_room(base: BaseModel, documents: Sequence[_Document], together: TogetherSettings) -> None:
    """Refuse prefixes that leave no room for a conversation where most of them are joined.

    Raises:
        WindowExceeded: names the document.
    """
    most = base.max_positions
    if most is None:
        return
    for document in documents:
        lengths = sorted((other.run.length for other in documents if other is not document), reverse=True)
        beside = lengths[: together.neighbours]
        joined = document.run.length + sum(length - 1 for length in beside)
        longest = max(row.tokens for row in (*document.rows, *document.dev))
        if joined + longest > most:
            raise WindowExceeded(
                f"the prefix of {document.name!r} joined with {len(beside)} others has {joined} virtual "
                f"tokens, and its longest conversation {longest}: more than the {most} positions of "
                f"{base.shown_name}; take fewer neighbours or shorter prefixes"
            )


def _run_logs(
    documents: Sequence[_Document],
    identity: str,
    together: TogetherSettings,
    folder_of: Callable[[str], Path | None],
    checkpoint_every: int | None,
    report: Callable[[Progress], None],
) -> list[RunLog]:
    """The documents' trainers with their records, at the newest step that all have. Raises as `RunLog`."""
    of_run = {"run": identity, "neighbours": together.neighbours, "mixed": together.mixed}
    newest = None
    while True:
        run_logs = []
        for place, each in enumerate(documents):
            rows, dev = (_visible(part, place, held_out=part is each.dev) for part in (each.rows, each.dev))
            trainer, description = each.run.trainer(each.made, each.start, rows, dev, owner=each.name)
            run_logs.append(
                RunLog(
                    trainer,
                    folder=folder_of(each.name),
                    description=description | {TOGETHER: of_run},
                    on_progress=report,
                    checkpoint_every=checkpoint_every,
                    newest=newest,
                )
            )
        steps = [run_log.trainer.step for run_log in run_logs]
        if len(set(steps)) == 1:
            return run_logs
        # Some were written, and some not, when the run was killed.
        newest = min(steps)


def _visible(rows: Sequence[DistilledExample], document: int, *, held_out: bool) -> list[VisibleExample]:
    names = [field.name for field in dataclasses.fields(DistilledExample)]
    return [
        VisibleExample(
            **{name: getattr(row, name) for name in names},
            document=document,
            number=number,
            held_out=held_out,
        )
        for number, row in enumerate(rows)
    ]


def _train(base: BaseModel, run_logs: Sequence[RunLog], together: TogetherSettings, seed: int) -> None:
    """Step all documents to their end. Raises TrainingDiverged, TrainingStopped."""
    trainers = [run_log.trainer for run_log in run_logs]
    by_owner = {run_log.trainer.owner: run_log for run_log in run_logs}

    def diverged(trainer: Trainer, error: TrainingDiverged) -> None:
        raise TrainingDiverged(f"document {trainer.owner!r}: {error}") from error

    with stop_on_interrupt() as request:

        def should_stop() -> bool:
            for run_log in run_logs:
                run_log.save_when_due()
            return request()

        try:
            run(
                base,
                iter(trainers),
                objective=MixedVisibility(base, trainers, together, seed),
                concurrent=len(trainers),
                max_batch_tokens=tokens_of_pass(base, trainers[0].settings),
                on_step=lambda trainer, step: by_owner[trainer.owner].on_step(step),
                on_evaluation=lambda trainer, loss: by_owner[trainer.owner].on_evaluation(loss),
                on_finish=lambda trainer: None,
                on_divergence=diverged,
                should_stop=should_stop,
            )
            if not all(trainer.finished for trainer in trainers):
                raise stopped(run_logs)
            for run_log in run_logs:
                # As in file names: a picture's title takes $ for mathematics.
                run_log.finish(f"{quote(run_log.trainer.owner or '', safe=' @')}: {base.name}, together")
        finally:
            for run_log in run_logs:
                run_log.close()


def _result(document: _Document, trainer: Trainer, identity: str) -> Prefix:
    """The prefix that a document ends in, with its report.

    Raises:
        HarmExceeded: more harm than the settings allow.
        NonFinitePrefix: numbers that are none in the base's data type.
    """
    of_run, made = document.run, document.made
    prefix = of_run.result(trainer, made, document.start)
    prefix = dataclasses.replace(prefix, recipe=of_run.recipe | {TOGETHER: identity})
    report = of_run.measured(prefix, made.chunks, document.about, document.answers)
    return dataclasses.replace(prefix, report=report)
