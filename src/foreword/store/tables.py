"""Tables of the catalogue; the migrations make them, a test holds both against each other.

Times are UTC in ISO 8601 with microseconds: text that sorts, and that a person who opens the
SQLite file can read. Names sort by their bytes on both databases, so that pages come in one order.
"""

from __future__ import annotations

import datetime

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()


def _name() -> String:
    return String(128).with_variant(String(128, collation="C"), "postgresql")


setting = Table(
    "setting",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", Text, nullable=False),
)
"""`store`: the store's id. `forgotten`: the last audit entry that forgot an owner, see
`cache.py`."""

blob = Table(
    "blob",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("key", String(128), nullable=False, unique=True),  # where it lies; never used twice
    Column("size", Integer, nullable=False),
    Column("ready", Boolean, nullable=False),  # false while the first upload runs
    Column("touched", String(32), nullable=False),
)

prefix = Table(
    "prefix",
    metadata,
    Column("owner", _name(), primary_key=True),
    Column("name", _name(), primary_key=True),
    Column("public", Boolean, nullable=False),
    Column("counter", Integer, nullable=False),  # the highest number ever given; none is given twice
    Column("latest", Integer),  # null when every version was deleted
    Column("base", String(256)),  # of the latest version; here for the index below
    Index("prefix_by_base", "base", "owner", "name"),
    Index("prefix_by_public", "public", "owner", "name"),
)

version = Table(
    "version",
    metadata,
    Column("owner", _name(), primary_key=True),
    Column("name", _name(), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("digest", String(64), ForeignKey("blob.digest"), nullable=False, index=True),
    Column("created", String(32), nullable=False),
    Column("base", String(256), nullable=False),
    Column("length", Integer, nullable=False),
    Column("dtype", String(16), nullable=False),
    Column("facts", JSON, nullable=False),
    ForeignKeyConstraint(["owner", "name"], ["prefix.owner", "prefix.name"], ondelete="CASCADE"),
)

label = Table(
    "label",
    metadata,
    Column("owner", _name(), primary_key=True),
    Column("name", _name(), primary_key=True),
    Column("label", _name(), primary_key=True),
    Column("number", Integer, nullable=False),
    ForeignKeyConstraint(
        ["owner", "name", "number"], ["version.owner", "version.name", "version.number"], ondelete="CASCADE"
    ),
    Index("label_by_label", "label", "owner", "name"),
    Index("label_by_version", "owner", "name", "number"),
)

share = Table(
    "share",
    metadata,
    Column("grantee", _name(), primary_key=True),
    Column("owner", _name(), primary_key=True),
    Column("name", _name(), primary_key=True),
    ForeignKeyConstraint(["owner", "name"], ["prefix.owner", "prefix.name"], ondelete="CASCADE"),
    Index("share_by_prefix", "owner", "name"),
)

api_key = Table(
    "api_key",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("secret", String(64), nullable=False),  # SHA-256 of the whole key, never the key
    Column("owner", _name(), index=True),  # null for administrators
    Column("role", String(16), nullable=False),
    Column("note", String(256)),
    Column("created", String(32), nullable=False),
    Column("revoked", String(32)),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", String(32), nullable=False),
    Column("who", String(160), nullable=False),
    Column("action", String(32), nullable=False),
    Column("owner", _name()),  # whose prefix it was about
    Column("target", String(300)),
    Column("digest", String(64)),
    Index("audit_by_owner", "owner", "id"),
)


def now(ago: float = 0.0) -> str:
    """The time `ago` seconds before this moment, as the tables keep it."""
    moment = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=ago)
    return moment.isoformat(timespec="microseconds")
