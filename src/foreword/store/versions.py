"""Versions: finding one, adding, copying and removing one, and the labels that point at them.

Numbers are given once. The row of a name keeps the highest number ever given, even when every version of it
was deleted, and it is locked by whoever adds or removes one: two writers of a name wait for each other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Integer, Row, Select, cast, delete, func, select, update

from foreword.errors import UsageError
from foreword.store import access
from foreword.store.access import Caller, check_writes, lock, unknown, visible
from foreword.store.database import insert
from foreword.store.leases import note_owner
from foreword.store.names import Reference
from foreword.store.record import Description, Version
from foreword.store.schema import blob, label, now, prefix, setting, share, version

_LABELS = (
    select(func.aggregate_strings(label.c.label, ","))
    .where(*(label.c[key] == version.c[key] for key in ("owner", "name", "number")))
    .correlate(version)
    .scalar_subquery()
)
COLUMNS = (*version.c, prefix.c.public, blob.c.size, blob.c.key, _LABELS.label("labels"))
"""What `record_of` needs; one query brings a page with its labels."""

MOST_LABELS = 100
"""Labels of one prefix, all its versions together."""

BRIEF = tuple(column for column in COLUMNS if column.name != "facts")
"""The same without the copy of the file's header, which may be as long as its owner likes, up to 64 KB."""

_FIELDS = tuple(field.name for field in dataclasses.fields(Version) if field.name not in ("labels", "facts"))


def locate(connection: Connection, caller: Caller, reference: Reference) -> Row[Any]:
    """The version that `reference` means to `caller`, in one query: a row with `COLUMNS`.

    `forgotten` is the last forgetting before it was found (see `cache.py`).

    Raises:
        UnknownPrefix: absent or hidden.
        UsageError: the first digits of a digest fit more than one version.
    """
    epoch = select(cast(setting.c.value, Integer)).where(setting.c.name == "forgotten").scalar_subquery()
    rows = connection.execute(_query(caller, reference, epoch.label("forgotten")).limit(2)).all()
    if not rows:
        raise unknown(reference, caller)
    if len({row.digest for row in rows}) > 1:
        raise UsageError(f"{reference} fits more than one version; give more digits of the digest")
    return rows[0]


def describe(connection: Connection, caller: Caller, reference: Reference) -> Description:
    """The version that `reference` means to `caller`, and the prefix around it. Raises as `locate`."""
    located = locate(connection, caller, reference)
    here = {"owner": located.owner, "name": located.name}
    numbers = select(version.c.number).filter_by(**here).order_by(version.c.number)
    labels = select(label.c.label, label.c.number).filter_by(**here).order_by(label.c.label)
    grantees = select(share.c.grantee).filter_by(**here).order_by(share.c.grantee)
    may_see_shares = caller.role == "admin" or caller.owner == located.owner
    return Description(
        version=record_of(located),
        numbers=tuple(connection.execute(numbers).scalars()),
        labels={row.label: row.number for row in connection.execute(labels)},
        shared_with=tuple(connection.execute(grantees).scalars()) if may_see_shares else (),
    )


def record_of(row: Row[Any]) -> Version:
    """The record of a row with `COLUMNS` or `BRIEF`."""
    fields = {name: getattr(row, name) for name in _FIELDS}
    fields["facts"] = getattr(row, "facts", {})
    return Version(**fields, labels=tuple(sorted(row.labels.split(","))) if row.labels else ())


def add(
    connection: Connection,
    caller: Caller,
    owner: str,
    name: str,
    digest: str,
    columns: Mapping[str, Any],
    *,
    action: str = "put",
) -> Version:
    """A new version; or the latest one, when that has the same digest: a put can be repeated.

    Call inside the transaction that made sure of the blob.

    Raises:
        NotAllowed: the caller may not write there.
        UnknownKey: the caller's key went meanwhile.
    """
    check_writes(caller, owner)
    access.check_key(connection, caller)
    state = lock_name(connection, owner, name)
    if state.latest is not None:
        newest = connection.execute(_query(caller, Reference(owner, name))).first()
        if newest is not None and newest.digest == digest:
            return record_of(newest)
    number = state.counter + 1
    row = {"owner": owner, "name": name, "number": number, "digest": digest, "created": now(), **columns}
    connection.execute(version.insert().values(row))
    set_latest(connection, owner, name, counter=number, latest=number, base=columns["base"])
    access.note(connection, caller, action, owner, f"{owner}/{name}@{number}", digest)
    return record_of(connection.execute(_query(caller, Reference(owner, name, number=number))).one())


def set_latest(connection: Connection, owner: str, name: str, **values: Any) -> None:
    """Change the row of a name, which says what its latest version is."""
    connection.execute(update(prefix).filter_by(owner=owner, name=name).values(values))


def lock_name(connection: Connection, owner: str, name: str) -> Row[Any]:
    """Hold the row of a name until the transaction ends, made if it is not there; its counter and latest."""
    fresh = insert(connection, prefix).values(owner=owner, name=name, public=False, counter=0)
    # The update that changes nothing locks the row: numbers are given to one writer at a time.
    locked = fresh.on_conflict_do_update(index_elements=["owner", "name"], set_={"owner": owner})
    return connection.execute(locked.returning(prefix.c.counter, prefix.c.latest)).one()


def copy(connection: Connection, caller: Caller, source: Reference, owner: str, name: str) -> Version:
    """A version of `owner/name` with the file of `source`; no bytes move."""
    check_writes(caller, owner)
    row = locate(connection, caller, source)
    # Held until the new version names it, so that garbage collection can't take it in between.
    held = select(blob.c.digest).where(blob.c.digest == row.digest).with_for_update()
    if connection.execute(held).first() is None:
        raise unknown(source, caller)
    note_owner(connection, owner, [row.digest])
    columns = {name: getattr(row, name) for name in ("base", "length", "dtype", "fingerprint", "facts")}
    return add(connection, caller, owner, name, row.digest, columns, action="copy")


def remove(connection: Connection, caller: Caller, reference: Reference, every: bool) -> tuple[str, ...]:
    """Remove a version, or every version of the name; the references that are gone.

    Labels that point at it go with it. Numbers are not given again.
    """
    owner, name = reference.owner, reference.name
    lock(connection, caller, owner, name)
    query = select(version.c.number, version.c.digest).filter_by(owner=owner, name=name)
    if not every:
        query = query.where(version.c.number == locate(connection, caller, reference).number)
    gone = connection.execute(query.order_by(version.c.number)).all()
    removed = delete(version).filter_by(owner=owner, name=name)
    connection.execute(removed.where(version.c.number.in_([row.number for row in gone])))
    # What is the latest now, and is the prefix still there at all?
    left = select(version.c.number, version.c.base).filter_by(owner=owner, name=name)
    newest = connection.execute(left.order_by(version.c.number.desc()).limit(1)).first()
    if newest is not None:
        set_latest(connection, owner, name, latest=newest.number, base=newest.base)
    else:  # the row stays for its counter; whoever puts the name again starts private
        set_latest(connection, owner, name, latest=None, base=None, public=False)
        connection.execute(delete(share).filter_by(owner=owner, name=name))
    for row in gone:
        access.note(connection, caller, "delete", owner, f"{owner}/{name}@{row.number}", row.digest)
    return tuple(f"{owner}/{name}@{row.number}" for row in gone)


def set_label(connection: Connection, caller: Caller, reference: Reference, text: str) -> Version:
    """Point a label at a version, away from the one it pointed at before. Raises as `lock`."""
    owner, name = reference.owner, reference.name
    lock(connection, caller, owner, name)
    row = locate(connection, caller, reference)
    others = (
        select(func.count())
        .select_from(label)
        .where(label.c.owner == owner, label.c.name == name, label.c.label != text)
    )
    if connection.execute(others).scalar_one() >= MOST_LABELS:
        raise UsageError(
            f"{owner}/{name} has {MOST_LABELS} labels, the most that a prefix may have; remove one first"
        )
    keys = {"owner": owner, "name": name, "label": text}
    fresh = insert(connection, label).values(**keys, number=row.number)
    connection.execute(fresh.on_conflict_do_update(index_elements=[*keys], set_={"number": row.number}))
    access.note(connection, caller, "label", owner, f"{owner}/{name}@{row.number} {text}", row.digest)
    return record_of(locate(connection, caller, Reference(owner, name, number=row.number)))


def drop_label(connection: Connection, caller: Caller, owner: str, name: str, text: str) -> None:
    """Remove a label; its version stays. Raises as `lock`."""
    lock(connection, caller, owner, name)
    row = locate(connection, caller, Reference(owner, name, label=text))
    connection.execute(delete(label).filter_by(owner=owner, name=name, label=text))
    access.note(connection, caller, "unlabel", owner, f"{owner}/{name}@{row.number} {text}", row.digest)


def _query(caller: Caller, reference: Reference, *more: Any) -> Select[Any]:
    joined = prefix.join(version, (version.c.owner == prefix.c.owner) & (version.c.name == prefix.c.name))
    query = (
        select(*COLUMNS, *more)
        .select_from(joined.join(blob, blob.c.digest == version.c.digest))
        .where(prefix.c.owner == reference.owner, prefix.c.name == reference.name, visible(caller))
    )
    if reference.number is not None:
        return query.where(version.c.number == reference.number)
    if reference.label is not None:
        named = select(label.c.number).where(
            label.c.owner == prefix.c.owner, label.c.name == prefix.c.name, label.c.label == reference.label
        )
        return query.where(version.c.number == named.scalar_subquery())
    if reference.digest is not None:
        fits = func.substr(version.c.digest, 1, len(reference.digest)) == reference.digest
        return query.where(fits).order_by(version.c.number.desc())
    return query.where(version.c.number == prefix.c.latest)
