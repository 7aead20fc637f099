"""foreword evaluate: how well a prefix does on a file of examples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli import options as common
from foreword.cli import output

if TYPE_CHECKING:
    from foreword.evaluation import Evaluation

EXAMPLE = (
    "  foreword evaluate dev.jsonl --prefix e2e.prefix --baseline\n"
    "  foreword evaluate test.csv --prefix e2e.prefix --beams 5 --out predictions.jsonl --json"
)

PrefixFile = Annotated[
    str, typer.Option("--prefix", metavar="FILE", help="Prefix file; none: the base model alone.")
]
Baseline = Annotated[bool, typer.Option("--baseline", help="Measure the base model without the prefix, too.")]
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
    data: common.DataFile,
    prefix: PrefixFile = "none",
    baseline: Baseline = False,
    base: common.BaseOfPrefix = None,
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    attention: common.AttentionKernel = "auto",
    format: common.Format = "auto",
    source_field: common.SourceField = None,
    target_field: common.TargetField = None,
    owner_field: common.OwnerField = None,
    limit: common.Limit = None,
    no_text: NoText = False,
    max_new_tokens: common.MaxNewTokens = 64,
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

    A source that comes several times is generated once and scored against all its targets.
    """
    from foreword.cli.loading import load_base_of, load_prefixes
    from foreword.cli.progress import Counter
    from foreword.errors import UsageError
    from foreword.evaluation import evaluate as measure
    from foreword.examples import read_examples
    from foreword.files import check_output
    from foreword.generation import Decoding

    if out is not None:
        if no_text:
            raise UsageError("--out writes texts and --no-text makes none; leave one of them out")
        check_output(out, overwrite=overwrite)
    decoding: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "beams": beams,
        "length_penalty": length_penalty,
        "stop": tuple(common.unescaped(text) for text in stop or ()),
        "banned": tuple(ban or ()),
    }
    Decoding(**decoding)  # what is wrong is said before the model is loaded
    if batch_size < 1:
        raise UsageError(f"--batch-size is {batch_size}; expected at least 1")
    fields = common.fields_of(source_field, target_field, owner_field)
    examples = read_examples(data, format=format, fields=fields, limit=limit)
    (loaded,) = load_prefixes([prefix])
    if baseline and loaded is None:
        raise UsageError("--baseline compares with the base model alone; give --prefix FILE")
    model = load_base_of([loaded], base, device=device, dtype=dtype, attention=attention)
    options: dict[str, Any] = {"text": not no_text, "batch_size": batch_size, **decoding}
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
            "prefix": None if loaded is None else prefix,
            "digest": None if loaded is None else loaded.digest,
            **_figures(found["prefix"]),
        }
        if "baseline" in found:
            facts["baseline"] = _figures(found["baseline"])
        return output.json_object({**facts, "out": out})
    _print(found, prefix if loaded is not None else model.name)
    if out is not None:
        typer.echo(f"texts: {out}")


def _figures(one: Evaluation) -> dict[str, Any]:
    names = ("examples", "sources", "tokens", "loss", "perplexity", "bleu", "chrf", "signatures")
    return {name: getattr(one, name) for name in names}


def _predictions(found: dict[str, Evaluation]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"source": each.source, "references": each.references, "text": each.text}
        for each in found["prefix"].outputs
    ]
    if "baseline" in found:
        for row, each in zip(rows, found["baseline"].outputs, strict=True):
            row["without"] = each.text
    return rows


def _print(found: dict[str, Evaluation], title: str) -> None:
    first = found["prefix"]
    rows = [
        ("loss per target token (nats)", *(f"{one.loss:.4f}" for one in found.values())),
        ("perplexity", *(f"{one.perplexity:.3f}" for one in found.values())),
    ]
    if first.bleu is not None:
        rows.append(("BLEU", *(f"{one.bleu:.2f}" for one in found.values())))
        rows.append(("chrF", *(f"{one.chrf:.2f}" for one in found.values())))
    output.table(("", title, "without prefix")[: len(found) + 1], rows)
    typer.echo(f"{first.examples} examples, {first.sources} sources, {first.tokens} target tokens")
    for name, signature in first.signatures.items():
        typer.echo(f"{name}: {signature}")
