"""Listing prefixes: pages in the order of their names, each page as fast as the first.

A page starts behind the last name of the one before (never OFFSET), and each kind of prefix that a
caller may see (their own, public, shared) is read from an index of its own and merged here: one
query with OR between them would walk through everybody else's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, Row, Select, Table, select, true, tuple_

from foreword.errors import UsageError
from foreword.store.access import Caller
from foreword.store.names import check_label, check_owner, parse_name
from foreword.store.record import Version
from foreword.store.schema import blob, label, prefix, share, version
from foreword.store.versions import BRIEF, COLUMNS, record_of

LARGEST_PAGE = 1000


@dataclass(frozen=True)
class Filter:
    """Which prefixes to list; see `PrefixStore.list`."""

    owner: str | None = None
    name: str | None = None
    label: str | None = None
    base: str | None = None
    facts: bool = True


@dataclass(frozen=True)
class Page:
    """Some versions in the order of owner and name.

    Attributes:
        versions: the latest version of each prefix, or the labelled one.
        next: `after` of the page behind this one; None on the last.
    """

    versions: tuple[Version, ...]
    next: str | None

    def __iter__(self) -> Iterator[Version]:
        return iter(self.versions)

    def __len__(self) -> int:
        return len(self.versions)


def page(connection: Connection, caller: Caller, chosen: Filter, limit: int, after: str | None) -> Page:
    """One page."""
    if not 1 <= limit <= LARGEST_PAGE:
        raise UsageError(f"limit is {limit}; expected 1 to {LARGEST_PAGE} prefixes a page")
    if chosen.owner is not None:
        check_owner(chosen.owner)
    if chosen.label is not None:
        check_label(chosen.label)
    start = parse_name(after) if after is not None else None
    rows: dict[tuple[str, str], Row[Any]] = {}
    for key, condition, owner in _branches(caller, chosen):
        names = _names(key, condition, owner, chosen, start)
        if names is not None:
            for row in connection.execute(_rows(names.limit(limit + 1), facts=chosen.facts)):
                rows.setdefault((row.owner, row.name), row)
    keys = sorted(rows)
    kept = [rows[key] for key in keys[:limit]]
    more = len(keys) > limit
    return Page(tuple(map(record_of, kept)), f"{kept[-1].owner}/{kept[-1].name}" if more else None)


def _branches(caller: Caller, chosen: Filter) -> Iterator[tuple[Table, ColumnElement[bool], str | None]]:
    """The ways in which a caller may see a prefix.

    Of each: the table whose index gives the order, a condition beside the filters, and whose prefixes these
    are, when they are of one owner only.
    """
    # A label is rarer than prefixes, though not than what is shared with one caller.
    key = prefix if chosen.label is None else label
    if caller.role == "admin":
        yield key, true(), chosen.owner
        return
    if chosen.owner in (None, caller.owner):
        yield key, true(), caller.owner
    if chosen.owner != caller.owner:
        yield key, prefix.c.public == true(), chosen.owner
        yield share, share.c.grantee == caller.owner, chosen.owner


def _names(
    key: Table,
    condition: ColumnElement[bool],
    owner: str | None,
    chosen: Filter,
    start: tuple[str, str] | None,
) -> Select[Any] | None:
    """Owners, names and numbers of one branch in order; None when all of it lies before `start`."""
    others = [table for table in (prefix, label) if table is not key and (table is prefix or chosen.label)]
    tables: FromClause = key
    for other in others:
        tables = tables.join(other, (other.c.owner == key.c.owner) & (other.c.name == key.c.name))
    conditions = [condition, prefix.c.latest.is_not(None)]
    number: ColumnElement[Any] = prefix.c.latest
    if chosen.label is not None:
        conditions.append(label.c.label == chosen.label)
        number = label.c.number
    if chosen.name:
        conditions += [key.c.name >= chosen.name, key.c.name < chosen.name + "\x7f"]
    if chosen.base is not None:
        conditions.append(prefix.c.base == chosen.base)
    order: tuple[ColumnElement[Any], ...] = (key.c.owner, key.c.name)
    if owner is not None:
        conditions.append(key.c.owner == owner)
        order = (key.c.name,)
        if start is not None and start[0] > owner:
            return None
        if start is not None and start[0] == owner:
            conditions.append(key.c.name > start[1])
    elif start is not None:
        # Of every table, lest a merge join read the others from their beginning.
        conditions += [tuple_(table.c.owner, table.c.name) > tuple_(*start) for table in (key, *others)]
    columns = (key.c.owner, key.c.name, number.label("number"))
    return select(*columns).select_from(tables).where(*conditions).order_by(*order)


def _rows(names: Select[Any], *, facts: bool) -> Select[Any]:
    """The rows of a few names. The limit stands in the subquery, so no plan looks at more of them."""
    few = names.subquery()
    same = (version.c.owner == few.c.owner) & (version.c.name == few.c.name)
    return (
        select(*(COLUMNS if facts else BRIEF))
        .select_from(few)
        .join(prefix, (prefix.c.owner == few.c.owner) & (prefix.c.name == few.c.name))
        .join(version, same & (version.c.number == few.c.number))
        .join(blob, blob.c.digest == version.c.digest)
    )
