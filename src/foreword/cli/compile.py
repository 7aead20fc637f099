"""foreword compile: make a document a prefix, or each document of a folder one."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from foreword.base.options import ModelOptions
from foreword.cli import output
from foreword.cli.compile_conversations import WriterOptions, conversations_for
from foreword.cli.options import (
    DATA,
    OUTPUT,
    StoreOptions,
    argument,
    base_option,
    json_option,
    option_of,
    overwrite_option,
    pairs,
    typed,
)
from foreword.cli.train import RUN, run_or_restart
from foreword.documents.settings import FOLDER, DocumentSettings, TogetherSettings
from foreword.errors import HarmExceeded, ReportWorse, UsageError
from foreword.training.settings import PREFIX
from foreword.validation import setting

if TYPE_CHECKING:
    from foreword.base.base_model import BaseModel
    from foreword.cli.train_destinations import Destination
    from foreword.prefix import Prefix

EXAMPLE = (
    "  foreword compile handbook.md --base smollm2-135m-instruct --out handbook.prefix\n"
    "  foreword compile contract.pdf --ratio 5 --max-harm 0.5 --out contract.prefix --report contract.html\n"
    "  foreword compile manuals --by document --out prefixes\n"
    "  foreword compile manuals --by document --together --owner alice\n"
    "  foreword compile handbook.md --owner alice --from alice/handbook --gate"
)

EDIT, STORE = "Edited document", "Store"


@dataclass(frozen=True)
class Request:
    """What is to be made, of one document or of many, checked before a base model is loaded.

    Attributes:
        settings: what decides which prefix comes out.
        together: how the documents of a folder see each other.
        checkpoint_dir, checkpoint_every: where and how often; None for the default.
        in_store: whether what is made goes into a store.
    """

    settings: DocumentSettings
    together: TogetherSettings
    labels: dict[str, str]
    licence: str | None
    checkpoint_dir: Path | None
    checkpoint_every: int | None
    load: Callable[[], BaseModel]
    in_store: bool
    overwrite: bool
    json: bool


@dataclass(frozen=True)
class Files:
    """Files beside one document.

    Attributes:
        previous: of an earlier state of the document, to go on from: a file, or a version in the store.
        gate: whether a report that is worse than its one fails.
        conversations: to train on, instead of those that are drawn from the text.
        writer: model that writes them, if any does.
        keep: where the conversations go that are trained on.
        questions: that the report is about.
        report: where the report goes as a page.
    """

    previous: str | None
    gate: bool
    conversations: Path | None
    writer: WriterOptions
    keep: Path | None
    questions: Path | None
    report: Path | None


def compile(
    context: typer.Context,
    document: Path = argument(
        ..., metavar="DOCUMENT", help="File: text, Markdown, HTML, PDF or DOCX; with --by document a folder."
    ),
    out: Path | None = setting(
        None, help="Prefix file to write; with --by document, folder for a file of each document"
    ),
    base: str = base_option(),
    *,
    options: ModelOptions,
    settings: DocumentSettings,
    previous: str | None = setting(
        None,
        name="from",
        section=EDIT,
        metavar="PREFIX",
        help="Prefix of an earlier state of the document, to go on from: a file; with --owner one in the "
        "store, such as alice/handbook",
    ),
    gate: bool = setting(
        False, section=EDIT, help="Write nothing where the prefix is worse than that of --from"
    ),
    conversations: Path | None = setting(
        None,
        section=DATA,
        metavar="FILE",
        help="Conversations to train on, your own or kept ones, instead of those drawn from the text",
    ),
    keep: Path | None = setting(
        None,
        section=DATA,
        metavar="FILE",
        help="Keep the conversations here, to be used again; written ones are kept with the checkpoints else",
    ),
    writing: WriterOptions,
    questions: Path | None = setting(
        None,
        section=DATA,
        metavar="FILE",
        help="Questions with answers for the report, instead of conversations that training does not have",
    ),
    by: Literal["document"] | None = setting(
        None, section=FOLDER, help="document: make a prefix of each document in the folder DOCUMENT"
    ),
    visibility: TogetherSettings,
    owner: str | None = setting(
        None,
        metavar="NAME",
        section=STORE,
        help="Put the prefix, or each one, into the store as NAME/DOCUMENT, instead of --out",
    ),
    store: str = option_of(StoreOptions, "store", "prefixes", section=STORE),
    blobs: str | None = option_of(StoreOptions, "blobs", section=STORE),
    label: list[str] | None = setting(
        None, metavar="NAME=VALUE", section=PREFIX, help="Label kept in the prefix file; repeatable"
    ),
    licence: str | None = setting(
        None, metavar="TEXT", section=PREFIX, help="Licence, kept in the prefix file"
    ),
    checkpoint_dir: Path | None = setting(
        None,
        metavar="FOLDER",
        section=RUN,
        default_text="OUT with .run for .prefix, or the store's own",
        help="Checkpoints, log and curves",
    ),
    checkpoint_every: int | None = setting(
        None, section=RUN, default_text="a tenth of the run", help="Steps between checkpoints"
    ),
    report: Path | None = setting(
        None, section=OUTPUT, metavar="FILE.html", help="Write what was measured as a page, too"
    ),
    overwrite: bool = overwrite_option(
        help="Replace what is written, and start what was run with other settings anew"
    ),
    json: bool = json_option(),
) -> None:
    """Make a document a prefix: questions about it are answered without its text.

    The prefix stands for the document in a tenth of its place, or in that of --length or --ratio. What it
    keeps of the document and what it changes elsewhere is measured and stands in the file. A run that was
    stopped goes on when the same command is given again; see docs/documents.md.
    """
    from foreword.cli.loading import load_base
    from foreword.cli.train_destinations import destination
    from foreword.files import check_output

    if checkpoint_every is not None and checkpoint_every < 1:
        raise UsageError(f"--checkpoint-every is {checkpoint_every}; expected 1 or more")
    request = Request(
        settings=settings,
        together=visibility,
        labels=pairs(label, "--label"),
        licence=licence,
        checkpoint_dir=checkpoint_dir,
        checkpoint_every=checkpoint_every,
        load=functools.partial(load_base, base, options),
        in_store=owner is not None,
        overwrite=overwrite,
        json=json,
    )
    if by is None:
        if given := typed(context, "together", "neighbours", "mixed"):
            raise UsageError(f"{given[0]} is given, but it is for a folder of documents: --by document")
        if document.is_dir():
            raise UsageError(
                f"{document} is a folder; --by document makes a prefix of each document in it, or name a file"
            )
        if gate and previous is None:
            raise UsageError("--gate compares with an earlier prefix; it needs --from PREFIX")
        writing.check(context)
        files = Files(previous, gate, conversations, writing, keep, questions, report)
        _check_place(context, out, owner, "the prefix goes: --out FILE")
        _check_apart(document, out, files)
        if out is not None:
            check_output(out, overwrite=overwrite)
        with destination(out, store, blobs, checkpoint_dir, owner=owner, file=True) as goal:
            return _compile_one(request, document, goal, files)
    from foreword.cli.compile_folder import compile_folder

    of_one = ("previous", "gate", "conversations", "keep", "questions", "report")
    writers = [each.name for each in dataclasses.fields(WriterOptions)]
    if given := typed(context, *of_one, *writers):
        raise UsageError(f"{given[0]} is given, but it is about one document; leave it or --by document out")
    if document.is_file():
        raise UsageError(f"{document} is a file; --by document takes a folder, or leave it out")
    _check_place(context, out, owner, "the documents' prefixes go: --out FOLDER for a file each")
    with destination(out, store, blobs, checkpoint_dir, owner=owner, what="document") as goal:
        compile_folder(request, document, goal)


def _check_place(context: typer.Context, out: Path | None, owner: str | None, where: str) -> None:
    """Refuse no place for what is made, or two. Raises UsageError."""
    if (out is None) == (owner is None):
        raise UsageError(f"say where {where}, or --store PLACE --owner NAME for NAME/DOCUMENT in a store")
    if out is not None and (given := typed(context, "store", "blobs")):
        raise UsageError(f"--out and {given[0]} are both given; to put prefixes into a store, use --owner")


def _compile_one(request: Request, path: Path, goal: Destination, files: Files) -> None:
    from foreword.documents.compile import compile_document
    from foreword.documents.reading import read_document
    from foreword.documents.report import read_questions
    from foreword.documents.report_page import report_page
    from foreword.files import check_output, write_text

    goal.check([path.stem])
    if files.report is not None:
        check_output(files.report, overwrite=request.overwrite)
    document = read_document(path)
    questions = None if files.questions is None else read_questions(files.questions)
    previous = None if files.previous is None else goal.named(files.previous)
    base = request.load()
    folder = goal.checkpoints(path.stem)
    if previous is not None and request.in_store:
        folder = folder / f"from-{previous.digest[:12]}"  # not among the checkpoints of its run
    conversations = conversations_for(request, base, document, files, folder)

    def run(shown: Callable[[Any], None]) -> Prefix:
        return compile_document(
            base,
            document.text,
            conversations=conversations,
            questions=questions,
            previous=previous,
            gate=files.gate,
            checkpoint_dir=folder,
            checkpoint_every=request.checkpoint_every,
            labels=request.labels,
            licence=request.licence,
            on_progress=shown,
            **request.settings.to_json(),
        )

    def write_page(report: Mapping[str, Any], page: Path, *, overwrite: bool) -> None:
        shown = report_page(
            report,
            document=document.name,
            base=base.shown_name,
            settings=request.settings.to_json(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        write_text(page, shown, overwrite=overwrite)

    try:
        with says_how_to_go_on(folder):
            prefix = run_or_restart(run, folder, overwrite=request.overwrite)
    except (HarmExceeded, ReportWorse) as error:
        page = files.report or folder / "report.html"
        if files.report is None:  # in the run's own folder, which methods without steps do not make
            folder.mkdir(parents=True, exist_ok=True)
        write_page(error.report, page, overwrite=request.overwrite or files.report is None)
        where = f"{goal.place(path.stem)} was not written; report: {page}"
        where += f"; checkpoints: {folder}" if request.settings.method == "studied" else ""
        if isinstance(error, ReportWorse):
            raise ReportWorse(error.report, error.worse, where) from error
        raise HarmExceeded(error.report, where) from error
    place = goal.write(path.stem, prefix, overwrite=request.overwrite)
    if files.report is not None:
        write_page(prefix.report, files.report, overwrite=request.overwrite)
    _tell(prefix, request.settings, place, folder, files.report, json=request.json)


def _check_apart(document: Path, out: Path | None, files: Files) -> None:
    """Refuse a file that would be written over another that is named, whatever may be overwritten.

    Raises:
        UsageError: names both options.
    """
    read = {
        "DOCUMENT": document,
        "--conversations": files.conversations,
        "--questions": files.questions,
    }
    written = {"--out": out, "--report": files.report, "--keep": files.keep}
    seen = {path.resolve(): name for name, path in read.items() if path is not None}
    for name, path in written.items():
        if path is None:
            continue
        if (other := seen.setdefault(path.resolve(), name)) != name:
            raise UsageError(f"{name} and {other} are both {path}; name another file for {name}")


@contextlib.contextmanager
def says_how_to_go_on(folder: Path) -> Iterator[None]:
    """Ctrl-C outside of training, when a checkpoint is there already, says so like one in training."""
    from foreword.training.checkpoint import list_checkpoints
    from foreword.training.train import TrainingStopped

    try:
        yield
    except TrainingStopped:
        raise
    except KeyboardInterrupt as error:
        if not folder.is_dir() or not (written := list_checkpoints(folder)):
            raise KeyboardInterrupt("interrupted; there is no checkpoint yet") from error
        interrupt = KeyboardInterrupt(f"interrupted; checkpoint: {written[-1]}")
        interrupt.checkpoint = written[-1]  # type: ignore[attr-defined]
        raise interrupt from error


def _tell(
    prefix: Prefix, settings: DocumentSettings, place: str, folder: Path, page: Path | None, *, json: bool
) -> None:
    file = Path(place)
    size = file.stat().st_size if file.is_file() else prefix.report["bytes"]
    run = folder if folder.is_dir() else None
    if json:
        return output.json_object(
            {
                "prefix": place,
                "digest": prefix.digest,
                "bytes": size,
                "base": prefix.base.name,
                "method": settings.method,
                "length": prefix.length,
                "ratio": round(prefix.report["tokens"] / prefix.length, 2),
                "settings": settings.to_json(),
                **dataclasses.asdict(prefix.origin),
                "report": prefix.report,
                "page": page,
                "run": run,
            }
        )
    typer.echo(repr(prefix))
    for name, text in described(prefix.report).items():
        typer.echo(f"  {name:<9}  {text}")
    typer.echo(f"  {'prefix':<9}  {place}  ({size / 1000:.0f} kB)")
    for name, path in (("report", page), ("run", run)):
        if path is not None:
            typer.echo(f"  {name:<9}  {path}")
    if file.is_file():  # not in a store
        command = ["foreword", "generate", "--prefix", place, "YOUR QUESTION"]
        typer.echo(f"next: {shlex.join(command)}")


def described(report: Mapping[str, Any]) -> dict[str, str]:
    """The figures of a report for people, each on a line of at most 80 columns."""
    from foreword.documents.report_page import figure, size_of

    behind = "the document" if report["reference"] == "document" else "its chunk"
    share = report["recovered_share"]
    lines = {
        "recovered": f"{figure(share)} of what {behind} does, {report['answers']} answers"
        if share is not None
        else f"nothing to recover: {behind} does not help with {report['answers']} answers"
    }
    if (short := report["answered"]) is not None:
        shares = [f"{100 * short[name]:.0f}%" for name in ("without", "with_prefix", "with_document")]
        lines["right"] = f"{shares[1]} of {short['questions']} short answers"
        lines["right"] += f"; without {shares[0]}, with {behind} {shares[2]}"
    own = report["harm_of_document"]
    beside = "" if own is None else f"; of the document itself {figure(own, 3)}"
    lines["harm"] = f"{figure(report['harm'], 3)}{beside}"
    if (gate := report.get("gate")) is not None:
        shares = [figure(gate[name]) for name in ("recovered_share", "recovered_share_before")]
        lines["gate"] = (
            f"recovered {shares[0]}, before {shares[1]}, of {gate['answers']} answers about what both know"
        )
    if (loss := report.get("rounding_loss")) is not None:
        lines["rounding"] = f"{loss:.2g} nats per token of the answers: mean KL to those of float32"
    lines["cache"] = (
        f"{report['length']} tokens, {size_of(report['cache_bytes'])}; as text {report['tokens']} tokens, "
        f"{size_of(report['document_cache_bytes'])}"
    )
    return lines
