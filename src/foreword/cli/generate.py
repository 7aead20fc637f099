"""foreword generate: text after prompts, under prefixes.

Prompts come from the command line, from a file with one a line, or from standard input.
"""

from __future__ import annotations

import contextlib
import json as json_module
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from foreword.base.options import ModelOptions
from foreword.cli import output
from foreword.cli.options import (
    OUTPUT,
    TEXT,
    DeclaredOptions,
    TextOptions,
    argument,
    base_of_prefix,
    json_option,
    overwrite_option,
)
from foreword.errors import BadExamples, BadSchema, CannotRead, TemplateRefuses, UsageError, WindowExceeded
from foreword.validation import LARGEST_SEED, SMALLEST_SEED, setting

if TYPE_CHECKING:
    from foreword.base.base_model import BaseModel
    from foreword.examples.records import Line
    from foreword.prefix import Prefix
    from foreword.template import Source, Template

EXAMPLE = (
    '  foreword generate --prefix e2e.prefix "name : Aromi | Type : coffee shop"\n'
    '  foreword generate --prefix alice.prefix --prefix none "one prompt under both"\n'
    "  foreword generate --prefix e2e.prefix --input prompts.txt --beams 5 --out texts.jsonl"
)

STANDARD_INPUT = "-"


@dataclass(frozen=True)
class SamplingOptions(TextOptions):
    """How texts are generated, with sampling."""

    temperature: float = setting(0.0, section=TEXT, help="0: greedy; above: sampling")
    top_p: float = setting(
        1.0, section=TEXT, help="Nucleus sampling: keep the most likely tokens up to this total probability"
    )
    top_k: int = setting(0, section=TEXT, help="Sample among the N most likely tokens; 0: all")
    seed: int = setting(0, section=TEXT, ge=SMALLEST_SEED, le=LARGEST_SEED, help="Seed of sampling")


def generate(
    prompts: list[str] | None = argument(None, metavar="PROMPT", help="Texts to go on from."),
    prefix: list[str] | None = setting(
        None, help="Prefix file, or none; once for all prompts, or once for each in turn"
    ),
    input: Path | None = setting(
        None, help="Prompts: one a line, or JSON lines with source; - for standard input"
    ),
    base: str | None = base_of_prefix(),
    *,
    options: ModelOptions,
    declared: DeclaredOptions,
    text: SamplingOptions,
    raw: bool = setting(False, section=TEXT, help="Take prompts as they are, without the template"),
    schema: Path | None = setting(
        None, section=TEXT, help="JSON schema file that every text follows; needs the extra structured"
    ),
    stream: bool = setting(False, section=OUTPUT, help="Print the text of one prompt as it grows"),
    compare: bool = setting(False, section=OUTPUT, help="Show texts without and with the prefix"),
    out: Path | None = setting(None, section=OUTPUT, help="Write JSON lines to it"),
    overwrite: bool = overwrite_option(),
    json: bool = json_option(),
) -> None:
    """Write text after each prompt, each under its own prefix."""
    if stream and (json or compare):
        raise UsageError("--stream prints text as it grows; it excludes --json and --compare")
    sources, names, places = _rows(prompts or [], input, prefix or ["none"], compare=compare)
    if stream and len(sources) > 1:
        raise UsageError(f"--stream shows one text as it grows; there are {len(sources)}")

    from foreword.cli.loading import load_base_of, load_prefixes
    from foreword.files import check_output
    from foreword.generation import generate as generate_texts
    from foreword.sampling import Decoding

    if out is not None:
        check_output(out, overwrite=overwrite)
    decoding = text.decoding()
    Decoding(**decoding)  # what is wrong is said before the model is loaded
    decoding |= {"raw": raw, "batch_size": text.batch_size}
    if schema is not None:
        decoding["schema"] = _read_schema(schema)
    prefixes = load_prefixes(names)
    model = load_base_of(prefixes, base, options, declared)

    on_text = (lambda row, text: typer.echo(text, nl=False)) if stream else None
    with _lines_named(places):
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


def _read_schema(file: Path) -> Any:
    """A schema from its file. Raises CannotRead, BadSchema."""
    from foreword.grammar import json_grammar

    try:
        found = json_module.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CannotRead(f"can't read {file}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise BadSchema(f"{file} is not JSON: {error}; expected a JSON schema") from error
    try:
        json_grammar(found)  # what is wrong is said before the model is loaded
    except BadSchema as error:
        raise BadSchema(f"{file}: {error}") from error
    return found


def _rows(
    prompts: Sequence[str], file: Path | None, names: Sequence[str], *, compare: bool
) -> tuple[list[Source], list[str], list[str]]:
    """A prompt and the name of its prefix for every row; and where each prompt stands, of those of a file."""
    sources, places = read_prompts(prompts, file)
    if compare and set(names) == {"none"}:
        raise UsageError("--compare shows texts without and with a prefix; give --prefix FILE")
    if len(sources) == 1:
        return sources * len(names), list(names), places * len(names)
    if len(names) == 1:
        return sources, list(names) * len(sources), places
    if len(names) != len(sources):
        raise UsageError(
            f"{len(names)} prefixes for {len(sources)} prompts; give one for all, or one for each"
        )
    return sources, list(names), places


@contextlib.contextmanager
def _lines_named(places: Sequence[str]) -> Iterator[None]:
    """Put the line of a prompt that comes from a file behind its number, in errors about it."""
    try:
        yield
    except (TemplateRefuses, UsageError, WindowExceeded) as error:
        found = re.match(r"prompt (\d+)(.*)", str(error), re.DOTALL)
        if found is None or not places:
            raise
        raise type(error)(f"prompt {found[1]} ({places[int(found[1])]}){found[2]}") from error


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


# -- prompts -------------------------------------------------------------------------------------


def read_prompts(given: Sequence[str], file: Path | None) -> tuple[list[Source], list[str]]:
    """The prompts of a command, and file and line of each of those that stand in one.

    Raises:
        UsageError: none at all, or both ways at once.
        CannotRead, BadExamples: a file that is absent, empty or has a fault; says where.
    """
    if given and file is not None:
        raise UsageError("prompts are given both as words and by --input; choose one")
    if file is None:
        if not given:
            raise UsageError("no prompt: give one in quotes, --input FILE, or --input - for standard input")
        return list(given), []
    lines = [line for line in _lines(file) if not line.blank]
    if not lines:
        raise BadExamples(f"{_name(file)} is empty; expected a prompt a line")
    return [_prompt(line) for line in lines], [f"{line.file}, line {line.number}" for line in lines]


def _lines(file: Path) -> Iterator[Line]:
    from foreword.examples.records import lines_of, read_lines

    if str(file) != STANDARD_INPUT:
        yield from read_lines(file)
    else:
        yield from lines_of(sys.stdin.buffer, _name(file))


def _name(file: Path) -> str:
    return "standard input" if str(file) == STANDARD_INPUT else str(file)


def _prompt(line: Line) -> Source:
    from foreword.examples.jsonl import json_or_none, parse_object

    value = json_or_none(line.text)
    if isinstance(value, str | list):
        if isinstance(value, str):
            found, advice = "text in the quotes of JSON", "write it without them"
        elif value and all(_is_message(item) for item in value):
            found, advice = "a JSON list of messages", 'write {"messages": [...]} around it'
        else:
            found, advice = "a JSON list", "write its items one a line (jq -c '.[]')"
        raise line.fault(
            f"found {found}; expected text, or an object with source (text) or messages (a list of role and "
            f"content): {advice}. If the prompt is the line as it stands, make it the source of an object"
        )
    # A text may begin with a brace; an object's first key, or its end, follows it at once.
    if not isinstance(value, dict) and not re.match(r"\s*\{\s*([\"}]|$)", line.text):
        return line.text
    record = parse_object(line)
    source = record.get("source", record.get("messages"))
    if isinstance(source, str):
        return source
    if isinstance(source, list) and source and all(isinstance(text, str) for text in source):
        return " ".join(source)
    if isinstance(source, list) and source and all(_is_message(item) for item in source):
        return tuple({"role": item["role"], "content": item["content"]} for item in source)
    raise line.fault(
        "expected an object with source (text) or messages (a list of role and content), "
        f"found {', '.join(map(repr, record)) or 'no field'}"
    )


def _is_message(item: Any) -> bool:
    return isinstance(item, dict) and all(isinstance(item.get(name), str) for name in ("role", "content"))
