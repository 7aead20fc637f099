"""foreword evaluate: how well a prefix does on a file of examples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli import options as common
from foreword.cli import output

if TYPE_CHECKING:
    from foreword.cli.evaluate_request import Request
    from foreword.evaluation import Evaluation

EXAMPLE = (
    "  foreword evaluate dev.jsonl --prefix e2e.prefix --baseline\n"
    "  foreword evaluate test.csv --prefix e2e.prefix --beams 5 --out predictions.jsonl --json\n"
    "  foreword evaluate webnlg/test.xml --task webnlg --prefix webnlg.prefix\n"
    "  foreword evaluate devset.csv --task e2e --outputs other-system.txt"
)

PrefixFile = Annotated[
    str, typer.Option("--prefix", metavar="FILE", help="Prefix file; none: the base model alone.")
]
Baseline = Annotated[bool, typer.Option("--baseline", help="Measure the base model without the prefix, too.")]
TaskName = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="NAME",
        help="Read, decode and score DATA as e2e, webnlg, dart, xsum, cnn, scitldr or aeslc; DATA may be "
        "hub:train, hub:dev or hub:test.",
        rich_help_panel=common.DATA,
    ),
]
Unseen = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CATEGORY",
        help="Score entries of this category apart from the others; repeatable. Default: the task's.",
        rich_help_panel=common.DATA,
    ),
]
Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metrics",
        metavar="NAME",
        help="e2e, webnlg, dart, rouge or plain; repeatable. Default: the task's.",
        rich_help_panel=common.TEXT,
    ),
]
Outputs = Annotated[
    Path | None,
    typer.Option(
        "--outputs",
        metavar="FILE",
        help="Score these texts instead of writing some: one a line, in the order of the sources.",
        rich_help_panel=common.TEXT,
    ),
]
NoText = Annotated[
    bool,
    typer.Option("--no-text", help="Losses only: much faster.", rich_help_panel=common.TEXT),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE",
        help="Write source, references and text of each to it, as JSON lines.",
        rich_help_panel=common.OUTPUT,
    ),
]


def evaluate(
    context: typer.Context,
    data: common.DataFile,
    prefix: PrefixFile = "none",
    baseline: Baseline = False,
    base: common.BaseOfPrefix = None,
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    attention: common.AttentionKernel = "auto",
    quantization: common.Quantized = None,
    task: TaskName = None,
    unseen: Unseen = None,
    format: common.Format = "auto",
    source_field: common.SourceField = None,
    target_field: common.TargetField = None,
    owner_field: common.OwnerField = None,
    limit: common.Limit = None,
    no_text: NoText = False,
    metrics: Metrics = None,
    outputs: Outputs = None,
    max_new_tokens: common.MaxNewTokens = 64,
    min_new_tokens: common.MinNewTokens = 0,
    beams: common.Beams = 1,
    length_penalty: common.LengthPenalty = 1.0,
    stop: common.Stop = None,
    ban: common.Ban = None,
    batch_size: common.RowsTogether = 32,
    out: Out = None,
    overwrite: common.Overwrite = False,
    json: common.Json = False,
) -> None:
    """Measure a prefix: loss, perplexity, BLEU and chrF over a file of examples.

    A source that comes several times is generated once and scored against all its targets. With --task, an
    official data set is read, decoded and scored as it is published.
    """
    from foreword.cli.evaluate_request import chosen_decoding, read_request
    from foreword.cli.loading import load_base_of, load_prefixes
    from foreword.cli.progress import Counter
    from foreword.errors import UsageError
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
    given: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "min_new_tokens": min_new_tokens,
        "beams": beams,
        "length_penalty": length_penalty,
        "stop": tuple(common.unescaped(text) for text in stop or ()),
        "banned": tuple(common.unescaped(text) for text in ban or ()),
    }
    named = {name for name, option in _OPTIONS.items() if common.typed(context, option)}
    decoding = chosen_decoding(None if task is None else find_task(task), given, named)
    Decoding(**decoding)  # what is wrong is said before the model is loaded
    if batch_size < 1:
        raise UsageError(f"--batch-size is {batch_size}; expected at least 1")
    request = read_request(
        data,
        task=task,
        metrics=() if no_text else metrics or (),
        unseen=unseen or (),
        format=format,
        fields=common.fields_of(source_field, target_field, owner_field),
        limit=limit,
    )
    if outputs is not None:
        return _score_only(request, data, outputs, json=json)
    (loaded,) = load_prefixes([prefix])
    if baseline and loaded is None:
        raise UsageError("--baseline compares with the base model alone; give --prefix FILE")
    model = load_base_of(
        [loaded], base, device=device, dtype=dtype, attention=attention, quantization=quantization
    )
    examples = _cut(request, model.tokenizer)
    options: dict[str, Any] = {
        "text": not no_text,
        "batch_size": batch_size,
        "metrics": () if no_text else request.metrics,
        "unseen": request.unseen,
        **decoding,
    }
    found = {"prefix": measure(model, examples, loaded, on_progress=Counter(), **options)}
    if baseline and loaded is not None:
        shown = Counter()
        found["baseline"] = measure(
            model,
            examples,
            template=loaded.template,
            on_progress=lambda what, done, total: shown(f"{what} without prefix", done, total),
            **options,
        )
    if out is not None:
        output.write_json_lines(out, _predictions(found), overwrite=overwrite)
    if json:
        facts = {
            "base": model.name,
            "data": data,
            "task": task,
            "prefix": None if loaded is None else prefix,
            "digest": None if loaded is None else loaded.digest,
            "decoding": decoding,
            **_figures(found["prefix"]),
        }
        if "baseline" in found:
            facts["baseline"] = _figures(found["baseline"])
        return output.json_object({**facts, "out": out})
    _print(found, prefix if loaded is not None else model.name)
    if out is not None:
        typer.echo(f"texts: {out}")


_OPTIONS = {
    "max_new_tokens": "max_new_tokens",
    "min_new_tokens": "min_new_tokens",
    "beams": "beams",
    "length_penalty": "length_penalty",
    "stop": "stop",
    "banned": "ban",
}


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


def _predictions(found: dict[str, Evaluation]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"source": each.source, "references": each.references, "text": each.text}
        | ({} if each.category is None else {"category": each.category})
        for each in found["prefix"].outputs
    ]
    if "baseline" in found:
        for row, each in zip(rows, found["baseline"].outputs, strict=True):
            row["without"] = each.text
    return rows


def _print(found: dict[str, Evaluation], title: str) -> None:
    from foreword.evaluation.metrics import shown

    first = found["prefix"]
    rows = [
        ("loss per target token (nats)", *(f"{one.loss:.4f}" for one in found.values())),
        ("perplexity", *(f"{one.perplexity:.3f}" for one in found.values())),
    ]
    if first.bleu is not None:
        rows.append(("BLEU", *(f"{one.bleu:.2f}" for one in found.values())))
        rows.append(("chrF", *(f"{one.chrf:.2f}" for one in found.values())))
    # `plain` is BLEU and chrF once more; apart, its parts are not.
    columns = [
        shown({name: values for name, values in one.figures.items() if name != "plain"})
        for one in found.values()
    ]
    rows += [(cells[0][0], *(value for _, value in cells)) for cells in zip(*columns, strict=True)]
    output.table(("", title, "without prefix")[: len(found) + 1], rows)
    typer.echo(f"{first.examples} examples, {first.sources} sources, {first.tokens} target tokens")
    for name, signature in first.signatures.items():
        typer.echo(f"{name}: {signature}")
