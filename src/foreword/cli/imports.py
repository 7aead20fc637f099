"""foreword import: prefixes of other libraries and of the Hugging Face Hub become prefix files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from foreword.cli import output
from foreword.cli.app import Group
from foreword.cli.options import argument, json_option, overwrite_option
from foreword.validation import setting

if TYPE_CHECKING:
    from foreword.prefix import Prefix

app = Group(
    "Turn prefixes of other libraries, or of the hub, into prefix files.",
    "  foreword import peft adapter/ --base smollm2-135m-instruct --out mine.prefix",
    "  foreword import hub alice/reviews --out reviews.prefix",
)

_base = setting(help="The model it was trained for: alias, folder or Hugging Face id")
_out = setting(help="The prefix file to write")
_overwrite = overwrite_option(section=None, help="Replace the file if it is there")
_json = json_option(section=None)


def _converting(convert: str, source: Any) -> Callable[..., None]:
    """A command that makes a prefix file of `source` by a function of `foreword.interop`."""

    def command(
        source: Path = source,
        base: str = _base,
        out: Path = _out,
        overwrite: bool = _overwrite,
        json: bool = _json,
    ) -> None:
        from foreword import interop
        from foreword.base.base_model import BaseModel
        from foreword.files import check_output

        check_output(out, overwrite=overwrite)  # before the model is loaded
        model = BaseModel.load(base, notify=lambda line: typer.echo(line, err=True))
        prefix = getattr(interop, convert)(source, model)
        prefix.save(out, overwrite=overwrite)
        _tell(out, prefix, json)

    return command


for _name, _help, _convert, _source in (
    (
        "peft",
        "Import a prefix (or a cartridge) that PEFT saved.\n\n"
        "Example: foreword import peft adapter/ --base smollm2-135m-instruct --out mine.prefix",
        "import_peft",
        argument(..., metavar="folder", help="Folder that PEFT's save_pretrained wrote."),
    ),
    (
        "adapters",
        "Import a prefix that adapters (AdapterHub) saved.\n\n"
        "Example: foreword import adapters adapter/ --base facebook/bart-large --out mine.prefix",
        "import_adapters",
        argument(..., metavar="folder", help="Folder that save_adapter of adapters wrote."),
    ),
    (
        "prefix-tuning",
        "Import a checkpoint of the original code (GPT-2, BART).\n\n"
        "Example: foreword import prefix-tuning checkpoint/ --base gpt2-medium --out mine.prefix",
        "import_prefix_tuning",
        argument(
            ...,
            metavar="path",
            help="Checkpoint of XiangLi1999/PrefixTuning: folder, or its file of weights.",
        ),
    ),
):
    _command = _converting(_convert, _source)
    _command.__doc__ = _help
    app.add(_command, _name)


@app.takes()
def hub(
    repository: str = argument(..., help="owner/name on the hub."),
    out: Path = _out,
    revision: str | None = setting(None, help="Commit, branch or tag; the newest when left out"),
    overwrite: bool = _overwrite,
    json: bool = _json,
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


def _tell(out: Path, prefix: Prefix, json: bool, **more: str) -> None:
    facts: dict[str, Any] = {
        "file": out,
        "digest": prefix.digest,
        "length": prefix.length,
        "streams": list(prefix.streams),
        "base": prefix.base.name,
        **more,
    }
    output.tell(facts, f"{out}: {prefix!r}", json=json)
