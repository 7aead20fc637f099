"""foreword import: prefixes of other libraries and of the Hugging Face Hub become prefix files."""

from __future__ import annotations

import json as json_format
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from foreword.base.base_model import BaseModel
    from foreword.prefix import Prefix

app = typer.Typer(
    no_args_is_help=True,
    help="Turn prefixes of other libraries, or of the hub, into prefix files.",
    epilog="\b\nExample:\n"
    "  foreword import peft adapter/ --base smollm2-135m-instruct --out mine.prefix\n"
    "  foreword import hub alice/reviews --out reviews.prefix",
)

BaseName = Annotated[
    str,
    typer.Option(
        "--base", help="The model it was trained for: alias, folder or Hugging Face id.", show_default=False
    ),
]
Output = Annotated[Path, typer.Option("--out", help="The prefix file to write.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def peft(
    folder: Annotated[
        Path, typer.Argument(help="Folder that PEFT's save_pretrained wrote.", show_default=False)
    ],
    base: BaseName,
    out: Output,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Import a prefix (or a cartridge) that PEFT saved.

    Example: foreword import peft adapter/ --base smollm2-135m-instruct --out mine.prefix
    """
    from foreword.interop import import_peft

    _convert(import_peft, folder, base, out, overwrite, json)


@app.command()
def adapters(
    folder: Annotated[
        Path, typer.Argument(help="Folder that save_adapter of adapters wrote.", show_default=False)
    ],
    base: BaseName,
    out: Output,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Import a prefix that adapters (AdapterHub) saved.

    Example: foreword import adapters adapter/ --base facebook/bart-large --out mine.prefix
    """
    from foreword.interop import import_adapters

    _convert(import_adapters, folder, base, out, overwrite, json)


@app.command("prefix-tuning")
def prefix_tuning(
    path: Annotated[
        Path,
        typer.Argument(
            help="Checkpoint of XiangLi1999/PrefixTuning: folder, or its file of weights.", show_default=False
        ),
    ],
    base: BaseName,
    out: Output,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Import a checkpoint of the original code (GPT-2, BART).

    Example: foreword import prefix-tuning checkpoint/ --base gpt2-medium --out mine.prefix
    """
    from foreword.interop import import_prefix_tuning

    _convert(import_prefix_tuning, path, base, out, overwrite, json)


@app.command()
def hub(
    repository: Annotated[str, typer.Argument(help="owner/name on the hub.", show_default=False)],
    out: Output,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Commit, branch or tag; the newest when left out.")
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Fetch a prefix from the Hugging Face Hub.

    Example: foreword import hub alice/reviews --out reviews.prefix
    """
    from foreword.files import check_output, write_bytes
    from foreword.interop import import_hub

    check_output(out, overwrite=overwrite)
    fetched = import_hub(repository, revision=revision)
    # Its bytes, not the prefix written anew: their SHA-256 is what the page on the hub names.
    write_bytes(out, fetched.content, overwrite=overwrite)
    _tell(out, fetched.prefix, json, revision=fetched.revision)


def _convert(
    convert: Callable[[Path, BaseModel], Prefix],
    source: Path,
    base: str,
    out: Path,
    overwrite: bool,
    json: bool,
) -> None:
    from foreword.base.base_model import BaseModel
    from foreword.files import check_output

    check_output(out, overwrite=overwrite)  # before the model is loaded
    model = BaseModel.load(base, notify=lambda line: typer.echo(line, err=True))
    prefix = convert(source, model)
    prefix.save(out, overwrite=overwrite)
    _tell(out, prefix, json)


def _tell(out: Path, prefix: Prefix, json: bool, **more: str) -> None:
    facts: dict[str, Any] = {
        "file": str(out),
        "digest": prefix.digest,
        "length": prefix.length,
        "streams": list(prefix.streams),
        "base": prefix.base.name,
        **more,
    }
    if json:
        typer.echo(json_format.dumps(facts, ensure_ascii=False))
    else:
        typer.echo(f"{out}: {prefix!r}")
