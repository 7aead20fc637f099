"""Options that several commands share, as annotated types."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from foreword.errors import UsageError

DATA, MODEL, TEXT, OUTPUT = "Data", "Base model", "Generation", "Output"

# -- data --------------------------------------------------------------------------------------

DataFile = Annotated[
    Path, typer.Argument(metavar="DATA", help="File of examples; see docs/data.md.", show_default=False)
]
Format = Annotated[
    Literal["auto", "jsonl", "csv", "e2e", "chat"],
    typer.Option("--format", help="How the data is written.", rich_help_panel=DATA),
]
SourceField = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Field or column with the source.", rich_help_panel=DATA),
]
TargetField = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Field or column with the target.", rich_help_panel=DATA),
]
OwnerField = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Field or column with the owner.", rich_help_panel=DATA),
]
Limit = Annotated[
    int | None, typer.Option(metavar="N", help="Take the first N examples only.", rich_help_panel=DATA)
]


def fields_of(source: str | None, target: str | None, owner: str | None) -> dict[str, str] | None:
    """The field names that were given, as `read_examples` takes them."""
    given = {"source": source, "target": target, "owner": owner}
    return {part: name for part, name in given.items() if name is not None} or None


# -- base model --------------------------------------------------------------------------------

BaseOfPrefix = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="NAME",
        help="Alias, folder or Hugging Face id; without it, the base that the prefix names.",
        rich_help_panel=MODEL,
    ),
]
Device = Annotated[
    str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1, mps, balanced.", rich_help_panel=MODEL)
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(help="Data type of the base model.", rich_help_panel=MODEL),
]
AttentionKernel = Annotated[
    Literal["auto", "sdpa", "eager"],
    typer.Option("--attention", help="Attention implementation.", rich_help_panel=MODEL),
]
Quantized = Annotated[
    Literal["int8", "nf4"] | None,
    typer.Option(
        "--quantization",
        help="Quantize the frozen weights; see docs/quantization.md.",
        rich_help_panel=MODEL,
    ),
]

# -- generation --------------------------------------------------------------------------------

MaxNewTokens = Annotated[
    int, typer.Option(metavar="N", help="Maximum new tokens per text.", rich_help_panel=TEXT)
]
MinNewTokens = Annotated[
    int, typer.Option(metavar="N", help="Minimum new tokens before an end token.", rich_help_panel=TEXT)
]
Beams = Annotated[
    int, typer.Option(metavar="N", help="Beam search with N beams; 1: off.", rich_help_panel=TEXT)
]
LengthPenalty = Annotated[
    float,
    typer.Option(
        metavar="X", help="Exponent of the length by which beam scores are divided.", rich_help_panel=TEXT
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT", help=r"End a text where this begins (\n: newline); repeatable.", rich_help_panel=TEXT
    ),
]
Ban = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="Never write this; repeatable.", rich_help_panel=TEXT),
]
RowsTogether = Annotated[
    int, typer.Option("--batch-size", metavar="N", help="Texts generated together.", rich_help_panel=TEXT)
]

# -- output ------------------------------------------------------------------------------------

Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the output if it is there.", rich_help_panel=OUTPUT)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=OUTPUT)]


def unescaped(text: str) -> str:
    r"""`\n` and `\t`, which a shell can hardly pass on, as newline and tab."""
    return text.replace(r"\n", "\n").replace(r"\t", "\t")


def pairs(texts: list[str] | None, option: str) -> dict[str, str]:
    """`name=value` texts as a dictionary.

    Raises:
        UsageError: a text without `=`, or without a name in front of it.
    """
    found = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"{option} is {text!r}; expected NAME=VALUE, as in {option} task=reviews")
        found[name.strip()] = value
    return found


def typed(context: typer.Context, parameter: str) -> bool:
    """Whether the user gave this option, be it at its default value."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"
