"""foreword store: what concerns whole owners or the whole store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foreword.cli import output, store_output
from foreword.cli.store_options import AsOwner, BlobsPlace, Json, StorePlace, opened

keys = typer.Typer(
    help="API keys: make, list, revoke.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog="\b\nExample:\n  foreword store keys make alice\n  foreword store keys list --owner alice",
)

Owner = Annotated[str, typer.Argument(show_default=False)]
KEY_COLUMNS = ("id", "owner", "role", "note", "created", "revoked")


def register(app: typer.Typer) -> None:
    """Add these commands to `foreword store`."""
    for command in (verify, forget, gc, export, audit, migrate):
        app.command()(command)
    app.command("import")(import_)
    app.add_typer(keys, name="keys")


def verify(
    owner: Annotated[str | None, typer.Option(help="Only this owner's.")] = None,
    place: StorePlace = "prefixes",
    blobs: BlobsPlace = None,
    json: Json = False,
) -> None:
    """Read every stored file again and check its digest; ends with status 1 when one is bad.

    Example: foreword store verify
    """
    with opened(place, blobs) as store:
        seen = store.verify(owner)
    if json:
        output.json_object(seen.to_json())
    else:
        if seen.problems:
            rows = [(p.reference, p.fault, p.digest) for p in seen.problems]
            output.table(("version", "fault", "digest"), rows)
        typer.echo(f"{seen.versions} versions, {seen.size / 1e6:.1f} MB read, {len(seen.problems)} bad")
    if seen.problems:
        raise typer.Exit(1)


def forget(
    owner: Owner,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    place: StorePlace = "prefixes",
    blobs: BlobsPlace = None,
    json: Json = False,
) -> None:
    """Remove everything of an owner: versions, files, keys, checkpoints, cached copies.

    Example: foreword store forget alice --yes
    """
    with opened(place, blobs) as store:
        if not yes:
            typer.confirm(f"Remove everything of {owner}? This can't be undone", abort=True, err=True)
        removed = store.forget(owner)
    if json:
        return output.json_object(removed.to_json())
    store_output.facts(removed.to_json())


def gc(
    grace: Annotated[float, typer.Option(help="Seconds that an unnamed file stays.")] = 3600.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    place: StorePlace = "prefixes",
    blobs: BlobsPlace = None,
    json: Json = False,
) -> None:
    """Remove files that no version names.

    Example: foreword store gc --dry-run
    """
    with opened(place, blobs) as store:
        gone = store.collect_garbage(grace=grace, dry_run=dry_run)
    if json:
        return output.json_object({**gone.to_json(), "dry_run": dry_run})
    word = "would remove" if dry_run else "removed"
    typer.echo(f"{word} {gone.blobs} unnamed files and {gone.leftovers} leftovers, {gone.size / 1e6:.1f} MB")


def export(
    owner: Owner,
    out: Annotated[Path, typer.Option("--output", "-o", help="File to write.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
    place: StorePlace = "prefixes",
    blobs: BlobsPlace = None,
    as_owner: AsOwner = None,
    json: Json = False,
) -> None:
    """Write everything of an owner to one file.

    Example: foreword store export alice -o alice.zip
    """
    with opened(place, blobs, as_owner) as store:
        written = store.export_owner(owner, out, overwrite=overwrite)
    if json:
        return output.json_object(written.to_json())
    typer.echo(f"{out}: {written.prefixes} prefixes, {written.versions} versions, {written.blobs} files")


def import_(
    file: Annotated[Path, typer.Argument(help="An export.", show_default=False)],
    owner: Annotated[str | None, typer.Option(help="To this owner, not the exported one.")] = None,
    place: StorePlace = "prefixes",
    blobs: BlobsPlace = None,
    as_owner: AsOwner = None,
    json: Json = False,
) -> None:
    """Add an export to the store, private; all of it, or nothing.

    Example: foreword store import alice.zip --owner alice2
    """
    with opened(place, blobs, as_owner, create=True) as store:
        added = store.import_owner(file, owner=owner)
    if json:
        return output.json_object(added.to_json())
    typer.echo(f"{added.owner}: {added.prefixes} prefixes, {added.versions} versions, {added.labels} labels")


def audit(
    owner: Annotated[str | None, typer.Option(help="Only about this owner's prefixes.")] = None,
    limit: Annotated[int, typer.Option(help="How many entries.")] = 100,
    before: Annotated[int | None, typer.Option(help="Older than the entry with this id.")] = None,
    place: StorePlace = "prefixes",
    blobs: BlobsPlace = None,
    json: Json = False,
) -> None:
    """Show who did what, newest first.

    Example: foreword store audit --owner alice --limit 20
    """
    with opened(place, blobs) as store:
        found = store.audit(owner, limit=limit, before=before)
    if json:
        return output.json_object({"entries": [entry.to_json() for entry in found]})
    rows = [(str(e.id), e.at[:19], e.who, e.action, e.target or "", (e.digest or "")[:12]) for e in found]
    output.table(("id", "at", "who", "action", "target", "digest"), rows)


def migrate(place: StorePlace = "prefixes", json: Json = False) -> None:
    """Bring the catalogue of an older release up to date; make a backup before.

    Example: foreword store migrate --store prefixes
    """
    from foreword.store.schema import migrate as migrate_database
    from foreword.store.schema import open_to_migrate

    before, after = migrate_database(open_to_migrate(place))
    if json:
        return output.json_object({"before": before, "after": after})
    typer.echo(f"schema {after}, nothing to do" if before == after else f"schema {before} -> {after}")


@keys.command("make")
def make_key(
    owner: Annotated[str | None, typer.Argument(help="For whom; none for administrators.")] = None,
    role: Annotated[str, typer.Option(help="admin, owner or reader.")] = "owner",
    note: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    place: StorePlace = "prefixes",
    blobs: BlobsPlace = None,
    json: Json = False,
) -> None:
    """Make a key and print it; it is shown this once and kept nowhere.

    Example: foreword store keys make alice --role reader --note gateway
    """
    with opened(place, blobs, create=True) as store:
        made = store.create_key(owner, role, note=note)  # type: ignore[arg-type]  # checked there
    if json:
        return output.json_object({"key": made.secret, **made.record.to_json()})
    typer.echo(made.secret)
    typer.echo(f"id {made.record.id}; the key is not shown again", err=True)


@keys.command("list")
def list_keys(
    owner: Annotated[str | None, typer.Option(help="Only this owner's.")] = None,
    place: StorePlace = "prefixes",
    blobs: BlobsPlace = None,
    json: Json = False,
) -> None:
    """List keys; the keys themselves are not known.

    Example: foreword store keys list --owner alice
    """
    with opened(place, blobs) as store:
        found = store.list_keys(owner)
    if json:
        return output.json_object({"keys": [record.to_json() for record in found]})
    rows = [[str(record.to_json()[column] or "") for column in KEY_COLUMNS] for record in found]
    output.table(KEY_COLUMNS, rows)


@keys.command("revoke")
def revoke_key(
    identifier: Annotated[str, typer.Argument(metavar="ID", help="From `keys list`.", show_default=False)],
    place: StorePlace = "prefixes",
    blobs: BlobsPlace = None,
    json: Json = False,
) -> None:
    """Refuse a key from now on.

    Example: foreword store keys revoke 3f9a1c0b77de
    """
    with opened(place, blobs) as store:
        record = store.revoke_key(identifier)
    if json:
        return output.json_object(record.to_json())
    typer.echo(f"{record.id} revoked {record.revoked}")
