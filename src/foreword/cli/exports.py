"""foreword export: prefix files for PEFT and for the Hugging Face Hub."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    help="Turn prefix files into what PEFT loads, or share them on the hub.",
    epilog="\b\nExample:\n"
    "  foreword export peft mine.prefix adapter/ --base smollm2-135m-instruct\n"
    "  foreword export hub mine.prefix alice/reviews --private",
)

PrefixFile = Annotated[Path, typer.Argument(help="The prefix file.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def peft(
    prefix: PrefixFile,
    folder: Annotated[Path, typer.Argument(help="Folder to write.", show_default=False)],
    base: Annotated[
        str,
        typer.Option(
            "--base",
            help="The model it was trained for: alias, folder or Hugging Face id.",
            show_default=False,
        ),
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
    json: Json = False,
) -> None:
    """Write a folder that PEFT's PeftModel.from_pretrained loads.

    Example: foreword export peft mine.prefix adapter/ --base smollm2-135m-instruct
    """
    from foreword.base.base_model import BaseModel
    from foreword.interop import export_peft
    from foreword.prefix import Prefix

    loaded = Prefix.load(prefix)
    model = BaseModel.load(base, notify=lambda line: typer.echo(line, err=True))
    export_peft(loaded, folder, model, overwrite=overwrite)
    if json:
        typer.echo(
            json_format.dumps({"folder": str(folder), "digest": loaded.digest, "length": loaded.length})
        )
    else:
        typer.echo(f"{folder}: a prefix of length {loaded.length} for PEFT; its README.md tells the template")


@app.command()
def hub(
    prefix: PrefixFile,
    repository: Annotated[
        str, typer.Argument(help="owner/name on the hub; made when missing.", show_default=False)
    ],
    private: Annotated[bool, typer.Option("--private", help="Only its owner may see it.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Add a commit if the repository has a prefix.")
    ] = False,
    json: Json = False,
) -> None:
    """Share a prefix on the Hugging Face Hub, with a page that explains it.

    Labels and training facts in the file become public with it: `foreword store show FILE` lists them.

    Example: foreword export hub mine.prefix alice/reviews --private
    """
    from foreword.interop import export_hub
    from foreword.prefix import Prefix

    published = export_hub(Prefix.load(prefix), repository, private=private, overwrite=overwrite)
    if json:
        facts = {"url": published.url, "revision": published.revision, "private": published.private}
        typer.echo(json_format.dumps(facts))
    else:
        visible = "private" if published.private else "public"
        typer.echo(f"{published.url} ({visible}), commit {published.revision[:12]}")
