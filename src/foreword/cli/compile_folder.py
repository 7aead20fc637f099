"""foreword compile --by document: a prefix of each document in a folder, each written as it is done.

Whether a document is done is read from the prefix that is there: its recipe names the text and the settings.
"""

from __future__ import annotations

import dataclasses
import shlex
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from foreword.cli import output
from foreword.cli.app import message_of
from foreword.cli.train_destinations import Destination
from foreword.errors import (
    BadDocument,
    CannotRead,
    DocumentsFailed,
    ForewordError,
    OutputExists,
    UsageError,
)

if TYPE_CHECKING:
    from foreword.cli.compile import Request
    from foreword.prefix import Prefix
    from foreword.training.run_log import Progress


def compile_folder(request: Request, folder: Path, goal: Destination) -> None:
    """Make a prefix of every document that has none, and tell; ends with status 1 if some got no prefix.

    Raises:
        CannotRead, BadDocument: no folder, or no document in it.
        OutputExists: a file is there that is not this run's result.
        UsageError: names that can't be told apart, or that the destination does not take.
    """
    from foreword.documents.compile_many import compile_documents, is_result, together_id
    from foreword.documents.reading import documents_in, read_document

    def passed_over(name: str, why: str) -> None:
        output.note(f"{output.one_line(name)} is passed over: {why}")

    paths = _by_name(documents_in(folder, on_passed_over=passed_over))
    goal.check(list(paths))
    texts: dict[str, str] = {}
    errors: dict[str, ForewordError] = {}
    for name, path in paths.items():
        try:
            texts[name] = read_document(path).text
        except (BadDocument, CannotRead) as error:
            errors[name] = error
            output.note(f"{output.one_line(name)} gets no prefix: {error}")
    base, together = request.load(), request.together
    run = None
    if together.together:
        run = together_id(base, texts.values(), request.settings, together)
    done: dict[str, tuple[Prefix, str]] = {}
    for name, text in texts.items():
        found = goal.newest(name)
        if found is not None and is_result(
            found[0], base, text, request.settings, request.labels, request.licence, run
        ):
            done[name] = found
        elif not request.overwrite and (taken := goal.taken(name)) is not None:
            raise OutputExists(
                f"{taken} exists already, and is not what this run makes; choose another folder or pass "
                "--overwrite to replace it"
            )
    before = set(done)
    if before:
        output.note(f"{len(before)} of {len(texts)} documents are done already")
    waiting = {name: text for name, text in texts.items() if name not in done}
    if run is not None and waiting:
        waiting = texts  # none is trained without the others

    def keep(name: str, prefix: Prefix) -> None:
        if name not in before:
            done[name] = prefix, goal.write(name, prefix, overwrite=request.overwrite)

    def failed(name: str, error: ForewordError) -> None:
        output.note(f"{output.one_line(name)} gets no prefix: {message_of(error)}")

    with (Shown if run is None else ShownTogether)(list(waiting)) as shown:
        try:
            compile_documents(
                base,
                waiting,
                checkpoint_dir=goal.checkpoints,
                checkpoint_every=request.checkpoint_every,
                restart=request.overwrite,
                labels=request.labels,
                licence=request.licence,
                into=keep,
                on_failure=failed,
                on_progress=shown,
                **request.settings.to_json(),
                **(dataclasses.asdict(together) if run is not None and waiting else {}),
            )
        except DocumentsFailed as error:
            errors |= error.errors
    rows = [
        {"document": name, "prefix": done[name][1], "before": name in before, "run": goal.checkpoints(name)}
        | _facts(done[name][0])
        for name in paths
        if name in done
    ]
    _report(base.name, rows, {name: errors[name] for name in paths if name in errors}, json=request.json)


def _by_name(paths: list[Path]) -> dict[str, Path]:
    """Files by their names without the ending.

    Raises:
        UsageError: two of one name.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if (other := found.setdefault(path.stem, path)) is not path:
            raise UsageError(
                f"{other.name} and {path.name} would both be the prefix {path.stem!r}; rename one of them"
            )
    return found


def _facts(prefix: Prefix) -> dict[str, Any]:
    return {"digest": prefix.digest, "length": prefix.length, "report": prefix.report}


class Shown:
    """Progress of one document after the other, each named before it begins."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._lines: Any = None

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lines is not None:
            self._lines.__exit__(*_)
            self._lines = None

    def __call__(self, progress: Progress) -> None:
        """Take what compiling reports."""
        name = progress.owner or ""
        if progress.note == "begins":
            self.__exit__()
            place = self._names.index(name) + 1
            typer.echo(f"document {place}/{len(self._names)}  {output.one_line(name)}", err=True)
            self._lines = output.training_progress().__enter__()
        elif progress.note is not None:
            self._lines(dataclasses.replace(progress, note=f"{output.one_line(name)}: {progress.note}"))
        else:
            self._lines(progress)


class ShownTogether(Shown):
    """Progress of documents that train at once: each is named while it is read; then the mean over all."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(names)
        self._newest: dict[str, Progress] = {}

    def __call__(self, progress: Progress) -> None:
        """Take what compiling reports."""
        if progress.note is not None:
            return super().__call__(progress)
        self._newest[progress.owner or ""] = progress
        found = list(self._newest.values())
        if all(each.step == progress.step for each in found):  # the last of them has made this step
            self._lines(
                dataclasses.replace(
                    progress,
                    loss=_mean(each.loss for each in found),
                    dev_loss=_mean(each.dev_loss for each in found),
                    best_dev_loss=None,
                    tokens_per_second=sum(each.tokens_per_second or 0.0 for each in found) or None,
                )
            )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _report(base: str, rows: list[dict[str, Any]], errors: dict[str, ForewordError], *, json: bool) -> None:
    """Print how the run ended.

    Raises:
        typer.Exit: with status 1, if some documents got no prefix.
    """
    failed = [
        {"document": name, "type": type(error).__name__, "message": message_of(error)}
        for name, error in errors.items()
    ]
    if json:
        error = DocumentsFailed(errors, {})
        message = {"type": type(error).__name__, "message": str(error)}
        output.json_object(
            {"base": base, "documents": rows, "failed": failed, **({"error": message} if failed else {})}
        )
    else:
        _print(rows, failed)
    if failed:
        raise typer.Exit(1)


def _print(rows: list[dict[str, Any]], failed: list[dict[str, str]]) -> None:
    from foreword.documents.report_page import figure

    if rows:
        cells = [
            (
                output.one_line(row["document"]),
                str(row["report"].get("tokens", "")),
                str(row["length"]),
                figure(row["report"].get("recovered_share")),
                figure(row["report"].get("harm"), 3),
                str(row["prefix"]),
            )
            for row in rows
        ]
        output.table(("document", "tokens", "length", "recovered", "harm", "prefix"), cells)
    if failed:
        output.table(
            ("document without a prefix", "why"),
            [(output.one_line(one["document"]), f"{one['type']}: {one['message']}") for one in failed],
        )
    before = sum(row["before"] for row in rows)
    parts = [f"{len(rows) - before} made"]
    parts += [f"{before} done before"] if before else []
    parts += [f"{len(failed)} failed"] if failed else []
    typer.echo(f"{len(rows) + len(failed)} documents: {', '.join(parts)}")
    if rows and str(rows[0]["prefix"]).endswith(".prefix"):
        command = ["foreword", "generate", "--prefix", str(rows[0]["prefix"]), "YOUR QUESTION"]
        typer.echo(f"next: {shlex.join(command)}")
