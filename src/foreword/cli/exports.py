"""foreword export: prefix files for PEFT and for the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

import typer

from foreword.cli import output
from foreword.cli.app import Group
from foreword.cli.options import argument, json_option, overwrite_option
from foreword.validation import setting

app = Group(
    "Turn prefix files into what PEFT loads, or share them on the hub.",
    "  foreword export peft mine.prefix adapter/ --base smollm2-135m-instruct",
    "  foreword export hub mine.prefix alice/reviews --private",
)

_prefix = argument(..., help="The prefix file.")
_json = json_option(section=None)


@app.takes()
def peft(
    prefix: Path = _prefix,
    folder: Path = argument(..., help="Folder to write."),
    base: str = setting(help="The model it was trained for: alias, folder or Hugging Face id"),
    overwrite: bool = overwrite_option(section=None, help="Replace an earlier export"),
    json: bool = _json,
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
    output.tell(
        {"folder": folder, "digest": loaded.digest, "length": loaded.length},
        f"{folder}: a prefix of length {loaded.length} for PEFT; its README.md tells the template",
        json=json,
    )


@app.takes()
def hub(
    prefix: Path = _prefix,
    repository: str = argument(..., help="owner/name on the hub; made when missing."),
    private: bool = setting(False, help="Only its owner may see it"),
    overwrite: bool = overwrite_option(section=None, help="Add a commit if the repository has a prefix"),
    json: bool = _json,
) -> None:
    """Share a prefix on the Hugging Face Hub, with a page that explains it.

    Labels and training facts in the file become public with it: `foreword store show FILE` lists them.

    Example: foreword export hub mine.prefix alice/reviews --private
    """
    from foreword.interop import export_hub
    from foreword.prefix import Prefix

    published = export_hub(Prefix.load(prefix), repository, private=private, overwrite=overwrite)
    output.tell(
        {"url": published.url, "revision": published.revision, "private": published.private},
        f"{published.url} ({'private' if published.private else 'public'}), commit {published.revision[:12]}",
        json=json,
    )
