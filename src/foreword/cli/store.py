"""foreword store: look after a store of prefixes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from foreword.cli import output, store_administration, store_output
from foreword.cli.store_options import AsOwner, BlobsPlace, Json, StorePlace, opened

app = typer.Typer(
    name="store",
    help="Prefixes by name and version: list, put, get, label, share, verify, forget.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog="\b\nExample:\n"
    "  foreword store put alice/reviews reviews.prefix --label production\n"
    "  foreword store list --owner alice",
)

Name = Annotated[str, typer.Argument(help="owner/name", show_default=False)]
Reference = Annotated[
    str,
    typer.Argument(help="owner/name, or with @3, @label or @sha256:<digest> behind it.", show_default=False),
]


@app.command("list")
def list_(
    owner: Annotated[str | None, typer.Option(help="Only this owner's.")] = None,
    name: Annotated[str | None, typer.Option(help="Only names that start with this.")] = None,
    label: Annotated[str | None, typer.Option(help="Only those with this label.")] = None,
    base: Annotated[str | None, typer.Option(help="Only those of this base model.")] = None,
    limit: Annotated[int, typer.Option(help="How many on a page, up to 1000.")] = 100,
    after: Annotated[str | None, typer.Option(help="Start behind this owner/name.")] = None,
    place: StorePlace = "prefixes",
    blobs: BlobsPlace = None,
    as_owner: AsOwner = None,
    json: Json = False,
) -> None:
    """List prefixes, a page at a time.

    Example: foreword store list --owner alice --label production
    """
    with opened(place, blobs, as_owner) as store:
        page = store.list(owner=owner, name=name, label=label, base=base, limit=limit, after=after)
    if json:
        return output.json_object({"prefixes": [v.to_json() for v in page], "next": page.next})
    rows = [
        (
            f"{v.owner}/{v.name}",
            str(v.number),
            ", ".join(v.labels),
            v.base,
            str(v.length),
            v.digest[:12],
            v.created[:19],
        )
        for v in page
    ]
    output.table(("prefix", "version", "labels", "base", "length", "digest", "created"), rows)
    if page.next is not None:
        typer.echo(f"more: --after {page.next}", err=True)


@app.command()
def show(
    reference: Annotated[
        str,
        typer.Argument(
            help="A prefix file, or owner/name (with @3, @label, @sha256:...).", show_default=False
        ),
    ],
    place: StorePlace = "prefixes",
    blobs: BlobsPlace = None,
    as_owner: AsOwner = None,
    json: Json = False,
) -> None:
    """Describe a prefix in the store, or a single prefix file.

    Example: foreword store show reviews.prefix
    """
    if Path(reference).is_file() or (reference.endswith(".prefix") and reference.count("/") != 1):
        facts = _facts_of_file(Path(reference))
    else:
        with opened(place, blobs, as_owner) as store:
            facts = store.describe(reference).to_json()
    if json:
        return output.json_object(facts)
    store_output.facts(facts)


@app.command()
def put(
    name: Name,
    file: Annotated[Path, typer.Argument(help="The prefix file.", show_default=False)],
    label: Annotated[list[str] | None, typer.Option(help="Point this label at it; can be repeated.")] = None,
    place: StorePlace = "prefixes",
    blobs: BlobsPlace = None,
    as_owner: AsOwner = None,
    json: Json = False,
) -> None:
    """Store a prefix file as the next version of a name; makes the store when there is none.

    Example: foreword store put alice/reviews reviews.prefix --label production
    """
    from foreword.store.names import check_label

    with opened(place, blobs, as_owner, create=True) as store:
        for text in label or ():
            check_label(text)  # before anything is stored
        version = store.put(name, file)
        for text in label or ():
            version = store.label(version.reference, text)
        if label:
            version = store.describe(version.reference).version
    if json:
        return output.json_object(version.to_json())
    typer.echo(f"{version.reference}  {version.digest}")


@app.command()
def get(
    reference: Reference,
    out: Annotated[Path, typer.Option("--output", "-o", help="File to write.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
    place: StorePlace = "prefixes",
    blobs: BlobsPlace = None,
    as_owner: AsOwner = None,
    json: Json = False,
) -> None:
    """Write a version to a prefix file.

    Example: foreword store get alice/reviews@production -o reviews.prefix
    """
    from foreword.files import check_output

    check_output(out, overwrite=overwrite)
    with opened(place, blobs, as_owner) as store:
        prefix = store.get(reference)
    prefix.save(out, overwrite=overwrite)
    if json:
        return output.json_object({"file": str(out), "digest": prefix.digest})
    typer.echo(f"{out}  {prefix.digest}")


@app.command()
def label(
    reference: Reference,
    text: Annotated[str, typer.Argument(metavar="LABEL", help="Such as production.", show_default=False)],
    remove: Annotated[bool, typer.Option("--remove", help="Remove the label instead.")] = False,
    place: StorePlace = "prefixes",
    blobs: BlobsPlace = None,
    as_owner: AsOwner = None,
    json: Json = False,
) -> None:
    """Point a label at a version, or remove it.

    Example: foreword store label alice/reviews@3 production
    """
    with opened(place, blobs, as_owner) as store:
        if remove:
            store.unlabel(reference, text)
        else:
            reference = store.label(reference, text).reference
    if json:
        return output.json_object({"reference": reference, "label": text, "removed": remove})
    typer.echo(f"{reference}: {'removed ' if remove else ''}{text}")


@app.command()
def copy(
    source: Reference,
    destination: Name,
    place: StorePlace = "prefixes",
    blobs: BlobsPlace = None,
    as_owner: AsOwner = None,
    json: Json = False,
) -> None:
    """Make the next version of a name from another prefix; no bytes are copied.

    Example: foreword store copy alice/reviews@3 bob/reviews
    """
    with opened(place, blobs, as_owner) as store:
        version = store.copy(source, destination)
    if json:
        return output.json_object(version.to_json())
    typer.echo(f"{version.reference}  {version.digest}")


@app.command()
def share(
    name: Name,
    grantee: Annotated[str | None, typer.Option("--with", help="The owner who may read it.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Let everybody read it.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Take that back.")] = False,
    place: StorePlace = "prefixes",
    blobs: BlobsPlace = None,
    as_owner: AsOwner = None,
    json: Json = False,
) -> None:
    """Let another owner, or everybody, read a prefix; or take that back.

    Example: foreword store share alice/reviews --with bob
    """
    from foreword.errors import UsageError

    if (grantee is None) == (not public):
        raise UsageError("say who may read it: --with OWNER, or --public")
    with opened(place, blobs, as_owner) as store:
        if grantee is None:
            store.publish(name, public=not remove)
        elif remove:
            store.unshare(name, grantee)
        else:
            store.share(name, grantee)
    whom = grantee or "everybody"
    if json:
        return output.json_object({"prefix": name, "with": whom, "removed": remove})
    typer.echo(f"{name}: {'no longer ' if remove else ''}shared with {whom}")


@app.command()
def delete(
    reference: Reference,
    all_versions: Annotated[bool, typer.Option("--all", help="Every version of the name.")] = False,
    place: StorePlace = "prefixes",
    blobs: BlobsPlace = None,
    as_owner: AsOwner = None,
    json: Json = False,
) -> None:
    """Delete one version, or all; the files go with the next `gc`.

    Example: foreword store delete alice/reviews@2
    """
    with opened(place, blobs, as_owner) as store:
        gone = store.delete(reference, all_versions=all_versions)
    if json:
        return output.json_object({"deleted": list(gone)})
    for line in gone:
        typer.echo(f"deleted {line}")


def _facts_of_file(path: Path) -> dict[str, Any]:
    from foreword.prefix import Prefix
    from foreword.store.record import columns_of

    prefix = Prefix.load(path)
    facts = columns_of(prefix)
    return {
        "file": str(path),
        "digest": prefix.digest,
        "size": path.stat().st_size,
        "numbers": prefix.numel(),
        **facts,
    }


store_administration.register(app)
