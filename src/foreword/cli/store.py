"""foreword store: look after a store of prefixes, its owners and its keys."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from foreword.cli import output
from foreword.cli.app import Group
from foreword.cli.equivalence import equate, equivalences
from foreword.cli.options import StoreOptions, argument, json_option, option_of, overwrite_option
from foreword.errors import UsageError
from foreword.validation import setting

if TYPE_CHECKING:
    from foreword.store import PrefixStore

app = Group(
    "Prefixes by name and version: list, put, get, label, share, verify, forget.",
    "  foreword store put alice/reviews reviews.prefix --label production",
    "  foreword store list --owner alice",
    name="store",
)
keys = Group(
    "API keys: make, list, revoke.",
    "  foreword store keys make alice",
    "  foreword store keys list --owner alice",
)

KEY_COLUMNS = ("id", "owner", "role", "note", "created", "revoked")

_overwrite = overwrite_option(section=None, help="Replace the file if it is there")
_name = argument(..., help="owner/name")
_reference = argument(..., help="owner/name, or with @3, @label or @sha256:<digest> behind it.")
_owner = argument(...)
_only_owner = setting(None, help="Only this owner's")
_out = setting(name="output", short="-o", help="File to write")


@dataclass(frozen=True)
class AsAdministrator(StoreOptions):
    """The store that a command works on, and how it answers."""

    json: bool = json_option(section=None)


@dataclass(frozen=True)
class AsOwner(StoreOptions):
    """The same, and as whom."""

    as_owner: str | None = setting(
        None, name="as", help="Act as this owner instead of as local administrator"
    )
    json: bool = json_option(section=None)

    def opened(self, *, create: bool = False) -> PrefixStore:
        """The store, as its owner sees it. Raises as `PrefixStore`."""
        store = super().opened(create=create)
        return store if self.as_owner is None else store.as_owner(self.as_owner)


# -- prefixes ------------------------------------------------------------------------------------


@app.takes("list")
def list_(
    owner: str | None = _only_owner,
    name: str | None = setting(None, help="Only names that start with this"),
    label: str | None = setting(None, help="Only those with this label"),
    base: str | None = setting(None, help="Only those of this base model"),
    limit: int = setting(100, help="How many on a page, up to 1000"),
    after: str | None = setting(None, help="Start behind this owner/name"),
    *,
    store: AsOwner,
) -> None:
    """List prefixes, a page at a time.

    Example: foreword store list --owner alice --label production
    """
    with store.opened() as opened:
        filters = {"owner": owner, "name": name, "label": label, "base": base}
        page = opened.list(**filters, limit=limit, after=after, facts=store.json)
    if store.json:
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


@app.takes()
def show(
    reference: str = argument(..., help="A prefix file, or owner/name (with @3, @label, @sha256:...)."),
    *,
    store: AsOwner,
) -> None:
    """Describe a prefix in the store, or a single prefix file.

    Example: foreword store show reviews.prefix
    """
    if Path(reference).is_file() or (reference.endswith(".prefix") and reference.count("/") != 1):
        from foreword.prefix import Prefix
        from foreword.store.record import columns_of

        path, prefix = Path(reference), Prefix.load(Path(reference))
        facts = {"file": str(path), "digest": prefix.digest, "size": path.stat().st_size}
        facts |= {"numbers": prefix.numel(), **columns_of(prefix)}
    else:
        with store.opened() as opened:
            facts = opened.describe(reference).to_json()
            prefix = opened.get(reference)
    facts |= {"report": dict(prefix.report), "recipe": dict(prefix.recipe)}
    if store.json:
        return output.json_object(facts)
    output.facts(_without_lists(facts))


def _without_lists(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts for people: lists, such as a report's sections, are for machines and pages."""
    return {
        name: _without_lists(value) if isinstance(value, Mapping) else value
        for name, value in facts.items()
        if not (isinstance(value, list) and len(value) > 12)
        and not (isinstance(value, list) and any(isinstance(each, Mapping) for each in value))
    }


@app.takes()
def put(
    name: str = _name,
    file: Path = argument(..., help="The prefix file."),
    label: list[str] | None = setting(None, help="Point this label at it; can be repeated"),
    *,
    store: AsOwner,
) -> None:
    """Store a prefix file as the next version of a name; makes the store when there is none.

    Example: foreword store put alice/reviews reviews.prefix --label production
    """
    from foreword.store.names import check_label

    with store.opened(create=True) as opened:
        for text in label or ():
            check_label(text)  # before anything is stored
        version = opened.put(name, file)
        for text in label or ():
            version = opened.label(version.reference, text)
        if label:
            version = opened.describe(version.reference).version
    output.tell(version.to_json(), f"{version.reference}  {version.digest}", json=store.json)


@app.takes()
def get(
    reference: str = _reference,
    out: Path = _out,
    overwrite: bool = _overwrite,
    *,
    store: AsOwner,
) -> None:
    """Write a version to a prefix file.

    Example: foreword store get alice/reviews@production -o reviews.prefix
    """
    from foreword.files import check_output

    check_output(out, overwrite=overwrite)
    with store.opened() as opened:
        prefix = opened.get(reference)
    prefix.save(out, overwrite=overwrite)
    output.tell({"file": str(out), "digest": prefix.digest}, f"{out}  {prefix.digest}", json=store.json)


@app.takes()
def label(
    reference: str = _reference,
    text: str = argument(..., metavar="LABEL", help="Such as production."),
    remove: bool = setting(False, help="Remove the label instead"),
    *,
    store: AsOwner,
) -> None:
    """Point a label at a version, or remove it.

    Example: foreword store label alice/reviews@3 production
    """
    with store.opened() as opened:
        if remove:
            opened.unlabel(reference, text)
        else:
            reference = opened.label(reference, text).reference
    facts = {"reference": reference, "label": text, "removed": remove}
    output.tell(facts, f"{reference}: {'removed ' if remove else ''}{text}", json=store.json)


@app.takes()
def copy(source: str = _reference, destination: str = _name, *, store: AsOwner) -> None:
    """Make the next version of a name from another prefix; no bytes are copied.

    Example: foreword store copy alice/reviews@3 bob/reviews
    """
    with store.opened() as opened:
        version = opened.copy(source, destination)
    output.tell(version.to_json(), f"{version.reference}  {version.digest}", json=store.json)


@app.takes()
def share(
    name: str = _name,
    grantee: str | None = setting(None, name="with", help="The owner who may read it"),
    public: bool = setting(False, help="Let everybody read it"),
    remove: bool = setting(False, help="Take that back"),
    *,
    store: AsOwner,
) -> None:
    """Let another owner, or everybody, read a prefix; or take that back.

    Example: foreword store share alice/reviews --with bob
    """
    if (grantee is None) == (not public):
        raise UsageError("say who may read it: --with OWNER, or --public")
    with store.opened() as opened:
        if grantee is None:
            opened.publish(name, public=not remove)
        elif remove:
            opened.unshare(name, grantee)
        else:
            opened.share(name, grantee)
    whom = grantee or "everybody"
    facts = {"prefix": name, "with": whom, "removed": remove}
    output.tell(facts, f"{name}: {'no longer ' if remove else ''}shared with {whom}", json=store.json)


@app.takes()
def delete(
    reference: str = _reference,
    all_versions: bool = setting(False, name="all", help="Every version of the name"),
    *,
    store: AsOwner,
) -> None:
    """Delete one version, or all; the files go with the next `gc`.

    Example: foreword store delete alice/reviews@2
    """
    with store.opened() as opened:
        gone = opened.delete(reference, all_versions=all_versions)
    output.tell({"deleted": list(gone)}, "\n".join(f"deleted {line}" for line in gone), json=store.json)


# -- owners, and the whole store -----------------------------------------------------------------


@app.takes()
def verify(
    owner: str | None = _only_owner,
    every: float | None = setting(
        None, ge=0, metavar="DAYS", help="Slowly, only files that were not checked for so long, as servers do"
    ),
    *,
    store: AsAdministrator,
) -> None:
    """Read stored files again and check their digests; ends with status 1 when one is bad.

    Example: foreword store verify --every 30
    """
    if every is not None:
        if owner is not None:
            raise UsageError("--every is about the files of all owners; leave --owner or --every out")
        return _verify_slowly(store, every)
    with store.opened() as opened:
        seen = opened.verify(owner)
    if seen.problems and not store.json:
        rows = [(p.reference, p.fault, p.digest) for p in seen.problems]
        output.table(("version", "fault", "digest"), rows)
    text = f"{seen.versions} versions, {seen.size / 1e6:.1f} MB read, {len(seen.problems)} bad"
    output.tell(seen.to_json(), text, json=store.json)
    if seen.problems:
        raise typer.Exit(1)


def _verify_slowly(store: AsAdministrator, days: float) -> None:
    from foreword.store.tasks import Checked

    seen, began = Checked(), time.monotonic()
    with store.opened() as opened:
        while True:
            # Counted from the beginning, so that nothing that was checked here is due here again.
            older_than = days * 86400 + time.monotonic() - began
            some = opened.check_files(older_than=older_than, pause=_sleep)
            if not some.files:
                break
            seen += some
    if not store.json:
        bad = [(digest, fault) for fault in ("damaged", "missing") for digest in getattr(seen, fault)]
        if bad:
            output.table(("digest", "fault"), bad)
    number = len(seen.damaged) + len(seen.missing)
    text = f"{seen.files} files, {seen.size / 1e6:.1f} MB read, {number} bad"
    output.tell(seen.to_json(), text, json=store.json)
    if number:
        raise typer.Exit(1)


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


@app.takes()
def usage(
    owner: str | None = _only_owner,
    since: str | None = setting(None, metavar="DAY", help="From this day on, such as 2026-01-31"),
    until: str | None = setting(None, metavar="DAY", help="Up to this day, itself included"),
    *,
    store: AsAdministrator,
) -> None:
    """Show what each owner used, by day (UTC): what a bill is made from.

    Example: foreword store usage --owner alice --since 2026-01-01
    """
    from foreword.store.usage import COUNTS, LARGEST_PAGE, Usage

    found: list[Usage] = []
    with store.opened() as opened:
        while True:
            after = f"{found[-1].day}/{found[-1].owner}" if found else None
            page = opened.usage(owner, start=since, end=until, after=after)
            found += page
            if len(page) < LARGEST_PAGE:
                break
    if store.json:
        return output.json_object({"usage": [row.to_json() for row in found]})
    columns = ("day", "owner", "requests", "read", "written", "steps", "trained", "stored")
    rows = [
        (
            row.day,
            row.owner,
            *(str(getattr(row, name)) for name in COUNTS),
            f"{row.stored_bytes / 1e6:.1f} MB",
        )
        for row in found
    ]
    output.table(columns, rows)


@app.takes()
def forget(
    owner: str = _owner,
    yes: bool = setting(False, help="Do not ask"),
    *,
    store: AsAdministrator,
) -> None:
    """Remove everything of an owner: versions, files, keys, checkpoints, cached copies.

    Example: foreword store forget alice --yes
    """
    with store.opened() as opened:
        if not yes:
            typer.confirm(f"Remove everything of {owner}? This can't be undone", abort=True, err=True)
        removed = opened.forget(owner)
    if store.json:
        return output.json_object(removed.to_json())
    output.facts(removed.to_json())


@app.takes()
def gc(
    grace: float = setting(3600.0, help="Seconds that an unnamed file stays"),
    dry_run: bool = setting(False, help="Only say what would go"),
    *,
    store: AsAdministrator,
) -> None:
    """Remove files that no version names.

    Example: foreword store gc --dry-run
    """
    with store.opened() as opened:
        gone = opened.collect_garbage(grace=grace, dry_run=dry_run)
    word = "would remove" if dry_run else "removed"
    text = f"{word} {gone.blobs} unnamed files and {gone.leftovers} leftovers, {gone.size / 1e6:.1f} MB"
    output.tell({**gone.to_json(), "dry_run": dry_run}, text, json=store.json)


@app.takes()
def export(
    owner: str = _owner,
    out: Path = _out,
    overwrite: bool = _overwrite,
    *,
    store: AsOwner,
) -> None:
    """Write everything of an owner to one file.

    Example: foreword store export alice -o alice.zip
    """
    with store.opened() as opened:
        written = opened.export_owner(owner, out, overwrite=overwrite)
    text = f"{out}: {written.prefixes} prefixes, {written.versions} versions, {written.blobs} files"
    if written.files:
        text += f"; {written.files} files that a server keeps"
    output.tell(written.to_json(), text, json=store.json)


@app.takes("import")
def import_(
    file: Path = argument(..., help="An export."),
    owner: str | None = setting(None, help="To this owner, not the exported one"),
    *,
    store: AsOwner,
) -> None:
    """Add an export to the store, private; all of it, or nothing.

    Example: foreword store import alice.zip --owner alice2
    """
    with store.opened(create=True) as opened:
        added = opened.import_owner(file, owner=owner)
    text = f"{added.owner}: {added.prefixes} prefixes, {added.versions} versions, {added.labels} labels"
    output.tell(added.to_json(), text, json=store.json)


@app.takes()
def audit(
    owner: str | None = setting(None, help="Only about this owner's prefixes"),
    limit: int = setting(100, help="How many entries"),
    before: int | None = setting(None, help="Older than the entry with this id"),
    *,
    store: AsAdministrator,
) -> None:
    """Show who did what, newest first.

    Example: foreword store audit --owner alice --limit 20
    """
    with store.opened() as opened:
        entries = opened.audit(owner, limit=limit, before=before)
    if store.json:
        return output.json_object({"entries": [entry.to_json() for entry in entries]})
    rows = [(str(e.id), e.at[:19], e.who, e.action, e.target or "", (e.digest or "")[:12]) for e in entries]
    output.table(("id", "at", "who", "action", "target", "digest"), rows)


@app.takes()
def migrate(
    store: str = option_of(StoreOptions, "store", "prefixes"),
    json: bool = json_option(section=None),
) -> None:
    """Bring the database of an older release up to date; make a backup before.

    Example: foreword store migrate --store prefixes
    """
    from foreword.store.schema import migrate as migrate_database
    from foreword.store.schema import open_to_migrate

    before, after = migrate_database(open_to_migrate(store))
    text = f"schema {after}, nothing to do" if before == after else f"schema {before} -> {after}"
    output.tell({"before": before, "after": after}, text, json=json)


# -- keys ----------------------------------------------------------------------------------------


@keys.takes("make")
def make_key(
    owner: str | None = argument(None, help="For whom; none for administrators."),
    role: str = setting("owner", help="admin, owner or reader"),
    note: str | None = setting(None, help="What it is for"),
    *,
    store: AsAdministrator,
) -> None:
    """Make a key and print it; it is shown this once and kept nowhere.

    Example: foreword store keys make alice --role reader --note gateway
    """
    with store.opened(create=True) as opened:
        made = opened.create_key(owner, role, note=note)  # type: ignore[arg-type]  # checked there
    output.tell({"key": made.secret, **made.record.to_json()}, made.secret, json=store.json)
    if not store.json:
        typer.echo(f"id {made.record.id}; the key is not shown again", err=True)


@keys.takes("list")
def list_keys(owner: str | None = _only_owner, *, store: AsAdministrator) -> None:
    """List keys; the keys themselves are not known.

    Example: foreword store keys list --owner alice
    """
    with store.opened() as opened:
        records = opened.list_keys(owner)
    if store.json:
        return output.json_object({"keys": [record.to_json() for record in records]})
    rows = [[str(record.to_json()[column] or "") for column in KEY_COLUMNS] for record in records]
    output.table(KEY_COLUMNS, rows)


@keys.takes("revoke")
def revoke_key(
    identifier: str = argument(..., metavar="ID", help="From `keys list`."),
    *,
    store: AsAdministrator,
) -> None:
    """Refuse a key from now on.

    Example: foreword store keys revoke 3f9a1c0b77de
    """
    with store.opened() as opened:
        record = opened.revoke_key(identifier)
    output.tell(record.to_json(), f"{record.id} revoked {record.revoked}", json=store.json)


app.add(equate)
app.add(equivalences)
app.add_typer(keys, name="keys")
