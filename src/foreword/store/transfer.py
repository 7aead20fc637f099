"""Export and import: everything of one owner into one file, and back.

A zip file, not compressed: `manifest.json`, once per digest `blobs/<digest>.prefix`, and `files/<id>` for
each file that a server keeps for the owner: examples, documents, conversations, reports. Labels and version
numbers travel; who may read them does not, because another store's "bob" may be somebody else. Files, and
what the owner used, are there for the owner to have, and are not imported.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, select

from foreword import files
from foreword.errors import BadArchive, BadName, BadPrefix, CannotRead, PrefixExists, UnknownPrefix
from foreword.store import access
from foreword.store.access import Caller, check_owns, check_writes
from foreword.store.blobs import Blobs, read_checked
from foreword.store.database import Database
from foreword.store.leases import deposit
from foreword.store.names import check_label, check_owner, parse_name, shown
from foreword.store.record import Record, columns_of
from foreword.store.schema import blob, label, upload, usage, version
from foreword.store.versions import lock_name, set_latest

Kind = TypeVar("Kind")

FORMAT = 1
MANIFEST = "manifest.json"
LARGEST_MANIFEST = 1 << 30
LARGEST_BLOB = 1 << 32


@dataclass(frozen=True)
class Exported(Record):
    """What an export wrote.

    Attributes:
        prefixes: names.
        blobs: different files of prefixes.
        files: that a server keeps for the owner.
    """

    owner: str
    path: Path
    prefixes: int
    versions: int
    blobs: int
    files: int

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return {**super().to_json(), "path": str(self.path)}


@dataclass(frozen=True)
class Imported(Record):
    """What an import added; `prefixes` is how many names."""

    owner: str
    prefixes: int
    versions: int
    labels: int


def export(
    database: Database, blobs: Blobs, caller: Caller, owner: str, path: Path, *, overwrite: bool
) -> Exported:
    """Write every version and file of `owner` to `path`, or nothing where a version can't be trusted."""
    check_owns(caller, owner)
    files.check_output(path, overwrite=overwrite)

    def gather(connection: Connection) -> tuple[list[dict[str, Any]], ...]:
        columns = (version.c.name, version.c.number, version.c.created, version.c.digest, blob.c.key)
        query = select(*columns).join(blob, blob.c.digest == version.c.digest).where(version.c.owner == owner)
        versions = connection.execute(query.order_by(version.c.name, version.c.number)).mappings()
        pointers = select(label.c.name, label.c.label, label.c.number).where(label.c.owner == owner)
        used = select(usage).where(usage.c.owner == owner).order_by(usage.c.day)
        facts = [column for column in upload.c if column.name not in ("content", "owner")]
        kept = select(*facts).where(upload.c.owner == owner).order_by(upload.c.created, upload.c.id)
        return tuple(
            [dict(row) for row in rows]
            for rows in (
                versions,
                connection.execute(pointers).mappings(),
                connection.execute(used).mappings(),
                connection.execute(kept).mappings(),
            )
        )

    versions, labels, used, kept = database.read(gather, snapshot=True)
    if not versions and not kept:
        raise UnknownPrefix(f"there is no owner {owner} that {caller} may read")
    keys = {row["digest"]: row.pop("key") for row in versions}
    manifest = {"foreword-export": FORMAT, "owner": owner, "versions": versions, "labels": labels}
    manifest["usage"] = used  # for its owner to read; an import leaves it out
    with files.writing(path, overwrite=overwrite) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        # One at a time, behind the snapshot: together they may be larger than memory, and one may be gone.
        there = [row for row in kept if _write_file(archive, database, row["id"])]
        archive.writestr(MANIFEST, json.dumps(manifest | {"files": there}, indent=1))
        for digest, key in sorted(keys.items()):
            archive.writestr(_member(digest), read_checked(blobs, key, digest))
    database.write(lambda connection: access.note(connection, caller, "export", owner, f"{owner}/*"))
    return Exported(owner, path, len({row["name"] for row in versions}), len(versions), len(keys), len(there))


def _write_file(archive: zipfile.ZipFile, database: Database, identifier: str) -> bool:
    rows = database.rows(select(upload.c.content).where(upload.c.id == identifier))
    for row in rows:
        archive.writestr(f"files/{identifier}", bytes(row.content))
    return bool(rows)


def import_owner(database: Database, blobs: Blobs, caller: Caller, path: Path, owner: str | None) -> Imported:
    """Add everything in `path` to `owner`, or to the owner it was exported from: all, or nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = _manifest(archive, path)
            owner = check_owner(owner or manifest["owner"])
            check_writes(caller, owner)
            contents = {
                digest: _content(archive, digest, path)
                for digest in sorted({entry["digest"] for entry in manifest["versions"]})
            }
    except OSError as error:
        raise CannotRead(f"{path} could not be read: {error.strerror}; expected an export file") from error
    except BadName as error:
        raise BadArchive(f"{path}: {error}") from error
    except (zipfile.BadZipFile, ValueError, RecursionError, EOFError, RuntimeError) as error:
        # RuntimeError: an encrypted file; its NotImplementedError: a way of packing that is not known here.
        raise BadArchive(
            f"{path} is not an export of a store, or was altered ({error}); export again"
        ) from error
    columns = _columns(contents, path)
    return deposit(
        database,
        blobs,
        contents,
        {owner: contents},
        lambda connection: _add(connection, caller, owner, manifest, columns),
    )


def _add(
    connection: Connection,
    caller: Caller,
    owner: str,
    manifest: Mapping[str, Any],
    columns: Mapping[str, Mapping[str, Any]],
) -> Imported:
    access.check_key(connection, caller)
    by_name: dict[str, list[dict[str, Any]]] = {}
    for entry in manifest["versions"]:
        by_name.setdefault(entry["name"], []).append(entry)
    for name, entries in sorted(by_name.items()):  # one order of locks for every writer
        state = lock_name(connection, owner, name)
        numbers = {entry["number"]: entry for entry in entries}
        # A name that lost all its versions may be used, from its counter on.
        if state.latest is not None or min(numbers) <= state.counter:
            raise PrefixExists(
                f"{owner}/{name} is, or was, in this store already, and its version numbers "
                "are never given twice; nothing was imported. Import to another owner (--owner)"
            )
        last = max(numbers)
        base = columns[numbers[last]["digest"]]["base"]
        set_latest(connection, owner, name, counter=last, latest=last, base=base)
    for entry in manifest["versions"]:
        connection.execute(version.insert().values(owner=owner, **entry, **columns[entry["digest"]]))
        target = f"{owner}/{entry['name']}@{entry['number']}"
        access.note(connection, caller, "import", owner, target, entry["digest"])
    for entry in manifest["labels"]:
        connection.execute(label.insert().values(owner=owner, **entry))
    return Imported(owner, len(by_name), len(manifest["versions"]), len(manifest["labels"]))


def _manifest(archive: zipfile.ZipFile, path: Path) -> dict[str, Any]:
    manifest = json.loads(_member_of(archive, MANIFEST, LARGEST_MANIFEST))
    if not isinstance(manifest, dict) or "foreword-export" not in manifest:
        raise ValueError(f"{MANIFEST} is none of a store")
    if manifest["foreword-export"] != FORMAT:
        raise BadArchive(
            f"{path} has export format {manifest['foreword-export']!r}; this release reads {FORMAT}"
        )
    owner = check_owner(_field(manifest, "owner", str))
    versions = [
        {
            "name": parse_name(f"{owner}/{_field(entry, 'name', str)}")[1],
            "number": _number(entry.get("number")),
            "created": _moment(_field(entry, "created", str)),
            "digest": _digest(entry.get("digest")),
        }
        for entry in _entries(manifest, "versions")
    ]
    labels = [
        {
            "name": _field(entry, "name", str),
            "label": check_label(_field(entry, "label", str)),
            "number": _number(entry.get("number")),
        }
        for entry in _entries(manifest, "labels")
    ]
    if not versions and manifest.get("files"):
        raise BadArchive(f"{path} has no prefix, only files that a server kept, which are not imported")
    numbers = [(entry["name"], entry["number"]) for entry in versions]
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError("no versions, or one twice")
    if len({(entry["name"], entry["label"]) for entry in labels}) < len(labels):
        raise ValueError("a label twice")
    if not {(entry["name"], entry["number"]) for entry in labels} <= set(numbers):
        raise ValueError("a label without its version")
    return {"owner": owner, "versions": versions, "labels": labels}


def _content(archive: zipfile.ZipFile, digest: str, path: Path) -> bytes:
    content = _member_of(archive, _member(digest), LARGEST_BLOB)
    if hashlib.sha256(content).hexdigest() != digest:
        raise BadArchive(f"{path}: {_member(digest)} has another SHA-256 than its name; it was altered")
    return content


def _member_of(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """A file of the archive. Stored as it is, as `export` writes it: a packed one can be a thousand times
    as large as the archive."""
    if name not in archive.NameToInfo:
        raise ValueError(f"it lacks {name}")
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed, and an export is not")
    if info.file_size > most:
        raise ValueError(f"{name} is larger than an export's can be")
    return archive.read(info)


def _columns(contents: Mapping[str, bytes], path: Path) -> dict[str, dict[str, Any]]:
    from foreword.prefix import Prefix

    try:
        return {
            digest: columns_of(Prefix.from_bytes(content, where=digest))
            for digest, content in contents.items()
        }
    except BadPrefix as error:
        raise BadArchive(
            f"{path} holds a file that is no good prefix ({error}); nothing was imported"
        ) from error


def _entries(manifest: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    listed = _field(manifest, name, list)
    if not all(isinstance(entry, dict) for entry in listed):
        raise ValueError(f"{name} holds something else than objects")
    return listed


def _field(entry: Mapping[str, Any], name: str, kind: type[Kind]) -> Kind:
    value = entry.get(name)
    if not isinstance(value, kind):
        raise ValueError(f"{name} is {shown(value)}")
    return value


def _moment(text: str) -> str:
    """A time as the tables keep it, in UTC: every time in them has to be one, or nothing can be listed."""
    try:
        moment = datetime.datetime.fromisoformat(text).astimezone(datetime.UTC)
        moment.timestamp()
    except (ValueError, OverflowError) as error:
        raise ValueError(f"created is {shown(text)}, which is no time") from error
    return moment.isoformat(timespec="microseconds")


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31:
        raise ValueError(f"version number {shown(value)}")
    return value


def _digest(value: object) -> str:
    if not isinstance(value, str) or len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise ValueError("a digest that is none")
    return value


def _member(digest: str) -> str:
    return f"blobs/{digest}.prefix"
