"""foreword generate: text after prompts, under prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli import options as common
from foreword.cli import output
from foreword.errors import UsageError

if TYPE_CHECKING:
    from foreword.base.base_model import BaseModel
    from foreword.prefix import Prefix
    from foreword.template import Source, Template

EXAMPLE = (
    '  foreword generate --prefix e2e.prefix "name : Aromi | Type : coffee shop"\n'
    '  foreword generate --prefix alice.prefix --prefix none "one prompt under both"\n'
    "  foreword generate --prefix e2e.prefix --input prompts.txt --beams 5 --out texts.jsonl"
)

Prompts = Annotated[
    list[str] | None, typer.Argument(metavar="PROMPT", help="Texts to go on from.", show_default=False)
]
PrefixFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--prefix",
        metavar="FILE",
        help="Prefix file, or none; once for all prompts, or once for each in turn.",
    ),
]
Input = Annotated[
    Path | None,
    typer.Option(
        "--input",
        metavar="FILE",
        help="Prompts: one a line, or JSON lines with source; - for standard input.",
    ),
]
Raw = Annotated[
    bool,
    typer.Option(
        "--raw", help="Take prompts as they are, without the template.", rich_help_panel=common.TEXT
    ),
]
Temperature = Annotated[
    float,
    typer.Option(metavar="X", help="0: greedy; above: sampling.", rich_help_panel=common.TEXT),
]
TopP = Annotated[
    float,
    typer.Option(
        metavar="X",
        help="Nucleus sampling: keep the most likely tokens up to this total probability.",
        rich_help_panel=common.TEXT,
    ),
]
TopK = Annotated[
    int,
    typer.Option(
        metavar="N", help="Sample among the N most likely tokens; 0: all.", rich_help_panel=common.TEXT
    ),
]
Seed = Annotated[int, typer.Option(metavar="N", help="Seed of sampling.", rich_help_panel=common.TEXT)]
Stream = Annotated[
    bool,
    typer.Option("--stream", help="Print the text of one prompt as it grows.", rich_help_panel=common.OUTPUT),
]
Compare = Annotated[
    bool,
    typer.Option("--compare", help="Show texts without and with the prefix.", rich_help_panel=common.OUTPUT),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help="Write JSON lines to it.", rich_help_panel=common.OUTPUT),
]


def generate(
    prompts: Prompts = None,
    prefix: PrefixFiles = None,
    input: Input = None,
    base: common.BaseOfPrefix = None,
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    attention: common.AttentionKernel = "auto",
    quantization: common.Quantized = None,
    max_new_tokens: common.MaxNewTokens = 64,
    min_new_tokens: common.MinNewTokens = 0,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: Seed = 0,
    beams: common.Beams = 1,
    length_penalty: common.LengthPenalty = 1.0,
    stop: common.Stop = None,
    ban: common.Ban = None,
    raw: Raw = False,
    batch_size: common.RowsTogether = 32,
    stream: Stream = False,
    compare: Compare = False,
    out: Out = None,
    overwrite: common.Overwrite = False,
    json: common.Json = False,
) -> None:
    """Write text after each prompt, each under its own prefix."""
    if stream and (json or compare):
        raise UsageError("--stream prints text as it grows; it excludes --json and --compare")
    sources, names = _rows(prompts or [], input, prefix or ["none"], compare=compare)
    if stream and len(sources) > 1:
        raise UsageError(f"--stream shows one text as it grows; there are {len(sources)}")

    from foreword.cli.loading import load_base_of, load_prefixes
    from foreword.files import check_output
    from foreword.generation import generate as generate_texts
    from foreword.sampling import Decoding

    if out is not None:
        check_output(out, overwrite=overwrite)
    decoding: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "min_new_tokens": min_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "beams": beams,
        "length_penalty": length_penalty,
        "stop": tuple(common.unescaped(text) for text in stop or ()),
        "banned": tuple(ban or ()),
    }
    Decoding(**decoding)  # what is wrong is said before the model is loaded
    decoding |= {"raw": raw, "batch_size": batch_size}
    prefixes = load_prefixes(names)
    model = load_base_of(
        prefixes, base, device=device, dtype=dtype, attention=attention, quantization=quantization
    )

    on_text = (lambda row, text: typer.echo(text, nl=False)) if stream else None
    texts = generate_texts(model, sources, prefixes, on_text=on_text, **decoding)
    without = _without(model, sources, prefixes, decoding) if compare else None
    rows = [
        {
            "source": source,
            "prefix": None if prefix is None else name,
            "text": text,
            **({} if without is None else {"without": without[place]}),
        }
        for place, (source, name, prefix, text) in enumerate(
            zip(sources, names, prefixes, texts, strict=True)
        )
    ]
    if out is not None:
        output.write_json_lines(out, rows, overwrite=overwrite)
    if json:
        return output.json_object({"base": model.name, "outputs": rows, "out": out})
    if stream:
        typer.echo()
    elif compare:
        _print_comparison(rows)
    elif out is None:
        _print_texts(rows)
    if out is not None:
        typer.echo(f"{len(rows)} texts: {out}", err=stream)


def _rows(
    prompts: Sequence[str], file: Path | None, names: Sequence[str], *, compare: bool
) -> tuple[list[Source], list[str]]:
    """A prompt and the name of its prefix for every row."""
    from foreword.cli.prompts import read_prompts

    sources = read_prompts(prompts, file)
    if compare and set(names) == {"none"}:
        raise UsageError("--compare shows texts without and with a prefix; give --prefix FILE")
    if len(sources) == 1:
        return sources * len(names), list(names)
    if len(names) == 1:
        return sources, list(names) * len(sources)
    if len(names) != len(sources):
        raise UsageError(
            f"{len(names)} prefixes for {len(sources)} prompts; give one for all, or one for each"
        )
    return sources, list(names)


def _without(
    model: BaseModel, sources: Sequence[Source], prefixes: Sequence[Prefix | None], decoding: dict[str, Any]
) -> list[str]:
    """Texts of the base model alone, after exactly what stands in front of the target with the prefix."""
    from foreword.generation import generate as generate_texts

    texts = [""] * len(sources)
    rows_of: dict[Template | None, list[int]] = {}
    for row, prefix in enumerate(prefixes):
        rows_of.setdefault(None if prefix is None else prefix.template, []).append(row)
    for template, rows in rows_of.items():
        made = generate_texts(model, [sources[row] for row in rows], template=template, **decoding)
        for row, text in zip(rows, made, strict=True):
            texts[row] = text
    return texts


def _print_texts(rows: Sequence[dict[str, Any]]) -> None:
    if len(rows) == 1:
        typer.echo(rows[0]["text"])
        return
    several = len({row["prefix"] for row in rows}) > 1
    for number, row in enumerate(rows, 1):
        prefix = f"[{row['prefix'] or 'no prefix'}] " if several else ""
        typer.echo(f"{number}. {prefix}{_one_line(row['source'])}")
        for line in output.printable(row["text"].strip()).splitlines() or [""]:
            typer.echo(f"   {line}")


def _print_comparison(rows: Sequence[dict[str, Any]]) -> None:
    names = {row["prefix"] for row in rows}
    title = f"with {names.pop()}" if len(names) == 1 else "with the prefix"
    cells = [(_one_line(row["source"], 200), row["without"].strip(), row["text"].strip()) for row in rows]
    if title == "with the prefix":
        cells = [(f"[{row['prefix']}] {cell[0]}", *cell[1:]) for row, cell in zip(rows, cells, strict=True)]
    output.table(("prompt", "without", title), cells, lines=True)


def _one_line(source: Any, length: int = 70) -> str:
    text = source if isinstance(source, str) else source[-1]["content"]
    text = output.printable(" ".join(text.split()))
    return text if len(text) <= length else f"{text[: length - 1]}…"
