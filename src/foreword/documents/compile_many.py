"""compile_documents: many texts in one run, each ending in a prefix of its own.

One behind the other: a step of one document fills the passes of a CPU already. Two documents of 1,100 tokens
took 142 s of a core apart and 140 s in shared passes (20 steps each, SmolLM2-135M-Instruct).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Unpack

from foreword.base.base_model import BaseModel
from foreword.documents.compile import check_base, compile_document
from foreword.documents.conversations import text_digest
from foreword.documents.settings import DocumentOptions, DocumentSettings
from foreword.errors import CannotWrite, CheckpointMismatch, DocumentsFailed, ForewordError, UsageError
from foreword.prefix import Prefix
from foreword.prefix_file import check_description
from foreword.training.checkpoint import list_checkpoints
from foreword.training.run_log import Progress
from foreword.training.train import check_folder
from foreword.training.train_many import owner_folder
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
    **options: Unpack[DocumentOptions],
) -> dict[str, Prefix]:
    """A prefix for each of many texts; one that fails is named at the end, and the others go on.

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
        UsageError: an option out of range, a name that comes twice, a base that takes no documents.
        CannotWrite: a checkpoint can't be written.
        TrainingStopped: Ctrl-C; the same call goes on with that document.
    """
    settings = DocumentSettings.from_mapping(options)
    check_description({"labels": labels, "licence": licence})
    check_folder(checkpoint_dir, checkpoint_every)
    check_base(base)
    report = on_progress or (lambda progress: None)
    prefixes: dict[str, Prefix] = {}
    errors: dict[str, ForewordError] = {}
    seen: set[str] = set()

    def compiled(name: str, text: str, folder: Path | None) -> Prefix:
        return compile_document(
            base,
            text,
            checkpoint_dir=folder,
            checkpoint_every=checkpoint_every,
            labels=labels,
            licence=licence,
            on_progress=lambda progress: report(dataclasses.replace(progress, owner=name)),
            **options,
        )

    for name, text in documents.items() if isinstance(documents, Mapping) else documents:
        if name in seen:
            raise UsageError(f"document {name!r} comes twice; give each a name of its own")
        seen.add(name)
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
            errors[name] = error
            if on_failure is not None:
                on_failure(name, error)
            continue
        if into is not None:
            into(name, prefix)
        else:
            prefixes[name] = prefix
    if errors:
        raise DocumentsFailed(errors, prefixes)
    return prefixes


def is_result(
    prefix: Prefix,
    base: BaseModel,
    text: str,
    settings: DocumentSettings,
    labels: Mapping[str, str] | None = None,
    licence: str | None = None,
) -> bool:
    """Whether a prefix is what a text becomes under these settings, drawn conversations understood.

    A limit of harm changes no prefix: one made under another limit is held against this one.
    """
    recipe = prefix.recipe.get("document", {})
    expected = settings.to_json() | {"sha256": text_digest(text)}
    most, harm = expected.pop("max_harm", None), prefix.report.get("harm")
    same = all(name in recipe and recipe[name] == value for name, value in expected.items())
    same = same and (dict(prefix.labels), prefix.licence) == (dict(labels or {}), licence)
    allowed = most is None or (isinstance(harm, float) and harm <= most)
    return prefix.base.fingerprint == base.fingerprint and same and allowed


def _folder(checkpoint_dir: str | Path | Callable[[str], Path] | None, name: str) -> Path | None:
    if checkpoint_dir is None or callable(checkpoint_dir):
        return None if checkpoint_dir is None else checkpoint_dir(name)
    return owner_folder(Path(checkpoint_dir), name)
