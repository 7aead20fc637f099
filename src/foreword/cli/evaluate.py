"""foreword evaluate: how well a prefix does on a file of examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from foreword.base.options import ModelOptions
from foreword.cli import output
from foreword.cli.options import (
    DATA,
    OUTPUT,
    TEXT,
    DataOptions,
    DeclaredOptions,
    TextOptions,
    base_of_prefix,
    data_file,
    json_option,
    overwrite_option,
    typed,
)
from foreword.errors import UsageError
from foreword.validation import setting

if TYPE_CHECKING:
    from foreword.evaluation import Evaluation, Task
    from foreword.examples import Entry, Example

EXAMPLE = (
    "  foreword evaluate dev.jsonl --prefix e2e.prefix --baseline\n"
    "  foreword evaluate test.csv --prefix e2e.prefix --beams 5 --out predictions.jsonl --json\n"
    "  foreword evaluate webnlg/test.xml --task webnlg --prefix webnlg.prefix\n"
    "  foreword evaluate devset.csv --task e2e --outputs other-system.txt"
)


def evaluate(
    context: typer.Context,
    data: Path = data_file(),
    prefix: str = setting("none", default_text="none", help="Prefix file; none: the base model alone"),
    baseline: bool = setting(False, help="Measure the base model without the prefix, too"),
    base: str | None = base_of_prefix(),
    *,
    options: ModelOptions,
    declared: DeclaredOptions,
    task: str | None = setting(
        None,
        metavar="NAME",
        section=DATA,
        help="Read, decode and score DATA as e2e, webnlg, dart, xsum, cnn, scitldr or aeslc; DATA may be "
        "hub:train, hub:dev or hub:test",
    ),
    unseen: list[str] | None = setting(
        None,
        metavar="CATEGORY",
        section=DATA,
        default_text="the task's",
        help="Score entries of this category apart from the others; repeatable",
    ),
    files: DataOptions,
    limit: int | None = setting(None, section=DATA, help="Take the first N examples only"),
    no_text: bool = setting(False, section=TEXT, help="Losses only: much faster"),
    metrics: list[str] | None = setting(
        None,
        metavar="NAME",
        section=TEXT,
        default_text="the task's",
        help="e2e, webnlg, dart, rouge or plain; repeatable",
    ),
    outputs: Path | None = setting(
        None,
        section=TEXT,
        help="Score these texts instead of writing some: one a line, in the order of the sources",
    ),
    text: TextOptions,
    out: Path | None = setting(
        None, section=OUTPUT, help="Write source, references and text of each to it, as JSON lines"
    ),
    overwrite: bool = overwrite_option(),
    json: bool = json_option(),
) -> None:
    """Measure a prefix: loss, perplexity, BLEU and chrF over a file of examples.

    A source that comes several times is generated once and scored against all its targets. With --task, an
    official data set is read, decoded and scored as it is published.
    """
    from foreword.cli.loading import load_base_of, load_prefixes
    from foreword.evaluation import evaluate as measure
    from foreword.evaluation import find_task
    from foreword.files import check_output
    from foreword.sampling import Decoding

    if no_text and (out is not None or metrics):
        wanted = "--metrics" if metrics else "--out"
        raise UsageError(f"{wanted} needs texts and --no-text makes none; leave one of them out")
    if outputs is not None and (
        prefix != "none" or base is not None or baseline or no_text or out is not None
    ):
        raise UsageError(
            "--outputs scores texts that are there already; leave out --prefix, --base, --baseline, "
            "--no-text and --out"
        )
    if out is not None:
        check_output(out, overwrite=overwrite)
    given = text.decoding()
    named = {name for name in given if typed(context, "ban" if name == "banned" else name)}
    decoding = chosen_decoding(None if task is None else find_task(task), given, named)
    Decoding(**decoding)  # what is wrong is said before the model is loaded
    if text.batch_size < 1:
        raise UsageError(f"--batch-size is {text.batch_size}; expected at least 1")
    request = read_request(
        data,
        task=task,
        metrics=() if no_text else metrics or (),
        unseen=unseen or (),
        files=files,
        limit=limit,
    )
    if outputs is not None:
        return _score_only(request, data, outputs, json=json)
    (loaded,) = load_prefixes([prefix])
    if baseline and loaded is None:
        raise UsageError("--baseline compares with the base model alone; give --prefix FILE")
    model = load_base_of([loaded], base, options, declared)
    examples = _cut(request, model.tokenizer)
    measuring: dict[str, Any] = {
        "text": not no_text,
        "batch_size": text.batch_size,
        "metrics": () if no_text else request.metrics,
        "unseen": request.unseen,
        **decoding,
    }
    evaluations = {"prefix": measure(model, examples, loaded, on_progress=output.Counter(), **measuring)}
    if baseline and loaded is not None:
        shown = output.Counter()
        evaluations["baseline"] = measure(
            model,
            examples,
            template=loaded.template,
            on_progress=lambda what, done, total: shown(f"{what} without prefix", done, total),
            **measuring,
        )
    if out is not None:
        output.write_json_lines(out, _predictions(evaluations), overwrite=overwrite)
    if json:
        facts = {
            "base": model.name,
            "data": data,
            "task": task,
            "prefix": None if loaded is None else prefix,
            "digest": None if loaded is None else loaded.digest,
            "decoding": decoding,
            **_figures(evaluations["prefix"]),
        }
        if "baseline" in evaluations:
            facts["baseline"] = _figures(evaluations["baseline"])
        return output.json_object({**facts, "out": out})
    _print(evaluations, prefix if loaded is not None else model.name)
    if out is not None:
        typer.echo(f"texts: {out}")


# -- what is to be evaluated ---------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """Data and how it is scored.

    Attributes:
        task: named by the user, or None.
        metrics: those asked for, else the task's.
        unseen: those categories asked for, else the task's that the data has.
    """

    task: Task | None
    data: list[Example | Entry]
    metrics: tuple[str, ...]
    unseen: tuple[str, ...]


def read_request(
    data: Path,
    *,
    task: str | None,
    metrics: Sequence[str],
    unseen: Sequence[str],
    files: DataOptions,
    limit: int | None,
) -> Request:
    """Read the data: a task's official files, its split at the hub (`hub:dev`), or examples of any kind.

    Raises:
        UsageError: a task that does not exist, or options that exclude each other.
        MetricUnavailable: what a metric needs is not there.
        CannotRead, BadExamples, DownloadFailed: see `Reading`.
    """
    from foreword.cli.loading import Reading
    from foreword.evaluation import find_task
    from foreword.evaluation.metrics import find_metrics, require
    from foreword.evaluation.task_data import check_categories
    from foreword.examples import Entry

    chosen_task = None if task is None else find_task(task)
    chosen = tuple(metrics) or (() if chosen_task is None else chosen_task.metrics)
    find_metrics(chosen)
    if chosen_task is None and unseen:
        raise UsageError("--unseen names categories, which the data of some tasks has; give --task")
    examples = Reading(task, files.format, files.fields()).data(data, limit=limit)
    entries = [one for one in examples if isinstance(one, Entry)]
    check_categories(unseen, entries)
    require(chosen)
    there = {entry.category for entry in entries}
    usual = () if chosen_task is None else tuple(sorted(chosen_task.unseen & there))
    return Request(chosen_task, examples, chosen, tuple(unseen) or usual)


def chosen_decoding(task: Task | None, given: Mapping[str, Any], named: set[str]) -> dict[str, Any]:
    """The decoding options: those that the user named, then the task's, then the command's defaults."""
    if task is None:
        return dict(given)
    return {name: given[name] if name in named else task.decoding.get(name, given[name]) for name in given}


def _cut(request: Request, tokenizer: Any) -> list[Any]:
    """The task's entries with sources as long as its published setting has them."""
    from foreword.evaluation import cut_sources
    from foreword.examples import Entry

    task = request.task
    if task is None or task.cut_source is None:
        return request.data
    entries = [one for one in request.data if isinstance(one, Entry)]
    cut, number = cut_sources(entries, tokenizer, task.cut_source)
    if number:
        output.note(
            f"{number} of {len(cut)} sources were cut after {task.cut_source} tokens, as {task.name} has it"
        )
    return list(cut)


# -- what is printed -----------------------------------------------------------------------------


def _score_only(request: Request, data: Path, outputs: Path, *, json: bool) -> None:
    from foreword.evaluation import read_outputs, scores_by_part
    from foreword.evaluation.metrics import shown
    from foreword.examples import entries_of

    written = read_outputs(outputs, entries_of(request.data))
    metrics = request.metrics or ("plain",)
    figures = scores_by_part(metrics, written, request.unseen)
    empty = sum(not one.text.strip() for one in written)
    if empty:
        output.note(
            f"{empty} of {len(written)} texts are empty; each counts as a text in which nothing is right"
        )
    if json:
        task = None if request.task is None else request.task.name
        facts = {"data": data, "outputs": outputs, "task": task, "texts": len(written), "empty": empty}
        return output.json_object({**facts, "metrics": figures})
    output.table(("", str(outputs)), shown(figures))
    typer.echo(f"{len(written)} texts")


def _figures(one: Evaluation) -> dict[str, Any]:
    names = ("examples", "sources", "tokens", "loss", "perplexity", "bleu", "chrf", "signatures")
    return {**{name: getattr(one, name) for name in names}, "metrics": one.figures}


def _predictions(evaluations: dict[str, Evaluation]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"source": each.source, "references": each.references, "text": each.text}
        | ({} if each.category is None else {"category": each.category})
        for each in evaluations["prefix"].outputs
    ]
    if "baseline" in evaluations:
        for row, each in zip(rows, evaluations["baseline"].outputs, strict=True):
            row["without"] = each.text
    return rows


def _print(evaluations: dict[str, Evaluation], title: str) -> None:
    from foreword.evaluation.metrics import shown

    first = evaluations["prefix"]
    rows = [
        ("loss per target token (nats)", *(f"{one.loss:.4f}" for one in evaluations.values())),
        ("perplexity", *(f"{one.perplexity:.3f}" for one in evaluations.values())),
    ]
    if first.bleu is not None:
        rows.append(("BLEU", *(f"{one.bleu:.2f}" for one in evaluations.values())))
        rows.append(("chrF", *(f"{one.chrf:.2f}" for one in evaluations.values())))
    # `plain` is BLEU and chrF once more; apart, its parts are not.
    columns = [
        shown({name: values for name, values in one.figures.items() if name != "plain"})
        for one in evaluations.values()
    ]
    rows += [(cells[0][0], *(value for _, value in cells)) for cells in zip(*columns, strict=True)]
    output.table(("", title, "without prefix")[: len(evaluations) + 1], rows)
    typer.echo(f"{first.examples} examples, {first.sources} sources, {first.tokens} target tokens")
    for name, signature in first.signatures.items():
        typer.echo(f"{name}: {signature}")
