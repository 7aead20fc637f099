"""Schema: the tables of the database, which revision of them it has, and bringing it to this release's.

The migrations make the tables; a test compares them with those here. Times are UTC in ISO 8601 with
microseconds: text that sorts, and that a person who opens the SQLite file can read. Names sort by their bytes
on both databases, so that pages come in one order.
"""

from __future__ import annotations

import datetime
from pathlib import Path

import sqlalchemy
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

from foreword.errors import OutdatedCatalogue, UnknownStore, UnsupportedCatalogue
from foreword.store.database import Database, find_database

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007")
"""Every revision in migrations/versions, oldest first; here so that opening a store needs no Alembic."""

_LOCK = 0x666F7265
"""Key of the PostgreSQL advisory lock that lets one process migrate at a time ("fore")."""


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
    Column("checked", String(32), nullable=False, server_default=""),  # when it was last seen to be whole
    Column("fault", String(16)),  # missing, altered or unreadable, if that is how it was last seen
    Index("blob_by_checked", "checked"),
    Index("blob_by_fault", "fault"),
)

blob_owner = Table(
    "blob_owner",
    metadata,
    Column("owner", _name(), primary_key=True),
    Column("digest", String(64), ForeignKey("blob.digest", ondelete="CASCADE"), primary_key=True, index=True),
)
"""Who has put a file. It stays while the file does: what no version names any more still takes its space."""

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
    Column("fingerprint", String(64)),  # of the base's weights
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

upload = Table(
    "upload",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("owner", _name(), nullable=False),
    Column("created", String(32), nullable=False),
    Column("filename", String(256), nullable=False),  # as the uploader called it; never a path of ours
    Column("style", String(16), nullable=False),  # text or chat
    Column("size", Integer, nullable=False),
    Column("examples", Integer, nullable=False),
    Column("content", LargeBinary, nullable=False),
    Index("upload_by_owner", "owner", "created", "id"),
)
"""Files of examples that were sent to a server."""

job = Table(
    "job",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("owner", _name(), nullable=False),
    Column("created", String(32), nullable=False),
    Column("state", String(16), nullable=False),  # queued, running, paused, succeeded, failed, cancelled
    Column("model", String(300), nullable=False),  # the base, or the version that it starts from
    Column("name", _name(), nullable=False),  # of the prefix that it will be
    Column("training_file", String(40), nullable=False),
    Column("validation_file", String(40)),
    Column("settings", JSON, nullable=False),
    Column("alike", String(64), nullable=False),  # jobs of one value can be trained in one run
    Column("asked", JSON, nullable=False),  # hyperparameters and metadata as the caller gave them
    Column("attempts", Integer, nullable=False),  # times that a worker took it and did not come back
    Column("used_steps", Integer, nullable=False, server_default="0"),  # as of the last heartbeat
    Column("used_tokens", BigInteger, nullable=False, server_default="0"),
    Column("worker", String(40)),
    Column("beat", String(32)),  # when that worker last said that it is alive
    Column("started", String(32)),  # when it last came to its turn
    Column("finished", String(32)),
    Column("result", String(300)),
    Column("trained_tokens", Integer),
    Column("error", JSON),
    Index("job_by_owner", "owner", "created", "id"),
    Index("job_by_state", "state", "created"),
)
"""Training that a server does for an owner."""

job_event = Table(
    "job_event",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("job", String(40), ForeignKey("job.id", ondelete="CASCADE"), nullable=False),
    Column("at", String(32), nullable=False),
    Column("level", String(8), nullable=False),
    Column("message", Text, nullable=False),
    Column("data", JSON),
    Index("job_event_by_job", "job", "id"),
)

job_checkpoint = Table(
    "job_checkpoint",
    metadata,
    Column("job", String(40), ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
    Column("owner", _name(), nullable=False),
    Column("digest", String(64), ForeignKey("blob.digest"), nullable=False, index=True),
    Column("step", Integer, nullable=False),
    Column("created", String(32), nullable=False),
    Index("job_checkpoint_by_owner", "owner"),
)
"""The newest checkpoint of each job that has not ended; the file is a blob."""

equivalence = Table(
    "equivalence",
    metadata,
    Column("trained", String(64), primary_key=True),  # fingerprints of two bases
    Column("other", String(64), primary_key=True),
    Column("declared", String(32), nullable=False),
    Column("declared_by", String(160), nullable=False),
    Column("loss_difference", Float, nullable=False),
    Column("facts", JSON, nullable=False),
    Index("equivalence_by_other", "other"),
)
"""Prefixes that were trained for one base and may run on another, such as a quantised copy."""

usage = Table(
    "usage",
    metadata,
    Column("owner", _name(), primary_key=True),
    Column("day", String(10), primary_key=True),  # UTC, as in 2026-01-31
    Column("requests", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("training_steps", BigInteger, nullable=False),
    Column("trained_tokens", BigInteger, nullable=False),
    Column("stored_bytes", BigInteger, nullable=False),  # the most that was seen on that day
    Index("usage_by_day", "day", "owner"),
)
"""What each owner used, by day."""

task = Table(
    "task",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("holder", String(40)),  # the process that does it
    Column("until", String(32)),  # when another may take it over
    Column("finished", String(32)),  # when it was last done to its end
)
"""Work of the store itself, of which one process on it at a time does each; and the last write of each server
that counts usage."""

FILE_USERS: tuple[Table, ...] = (version, job_checkpoint)
"""Tables whose rows name a file in `blob` that they need, by `digest`, and the `owner` whom it counts for.
A new one goes here: garbage collection, limits and forgetting go by this."""


def now(ago: float = 0.0) -> str:
    """The time `ago` seconds before this moment, as the tables keep it."""
    moment = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=ago)
    return moment.isoformat(timespec="microseconds")


def prepare(database: Database, *, create: bool) -> None:
    """Make the tables of a fresh database; refuse one that this release can't use.

    Raises:
        UnknownStore: there are no tables and `create` is false.
        OutdatedCatalogue: made by an older release.
        UnsupportedCatalogue: made by a newer release.
    """
    present = database.read(revision)
    if present == REVISIONS[-1]:
        return
    if present is None:
        if not create:
            raise UnknownStore(f"{database} holds no store; check the name, or put a prefix to make one")
        database.write(_upgrade)
    elif _is_older(database, present):
        raise OutdatedCatalogue(
            f"{database} has schema {present}, this release needs {REVISIONS[-1]}; "
            "make a backup, then run: foreword store migrate"
        )


def open_to_migrate(place: str | Path) -> Database:
    """The database of a store, whose schema may be an older one. Raises UnknownStore: there is none."""
    url, _, _ = find_database(place, "unused" if "://" in str(place) else None, create=False)
    database = Database(url)
    if database.read(revision) is None:
        raise UnknownStore(f"{database} holds no store to migrate; check the name")
    return database


def migrate(database: Database) -> tuple[str | None, str]:
    """Bring the database to the schema of this release: the revisions before and after.

    Raises:
        UnsupportedCatalogue: made by a newer release.
    """
    return database.write(_upgrade)


def revision(connection: Connection) -> str | None:
    """The revision of the database; None without tables."""
    if not sqlalchemy.inspect(connection).has_table("alembic_version"):
        return None
    number = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return None if number is None else str(number)


def _is_older(database: object, present: str) -> bool:
    if present not in REVISIONS:
        raise UnsupportedCatalogue(
            f"{database} has schema {present}, this release knows up to {REVISIONS[-1]}; "
            "it was made by a newer Foreword: update this one"
        )
    return present != REVISIONS[-1]


def _upgrade(connection: Connection) -> tuple[str | None, str]:
    from alembic import command
    from alembic.config import Config

    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
    before = revision(connection)  # with the lock held: another process may have been faster
    if before is None or _is_older(connection.engine.url.render_as_string(hide_password=True), before):
        config = Config()
        config.set_main_option("script_location", "foreword.store:migrations")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return before, REVISIONS[-1]
