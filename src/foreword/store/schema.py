"""Schema: which version the tables have, and bringing them to the one this release needs."""

from __future__ import annotations

import sqlalchemy
from sqlalchemy import Connection

from foreword.errors import OutdatedCatalogue, UnknownStore, UnsupportedCatalogue
from foreword.store.database import Catalogue

REVISIONS = ("0001", "0002", "0003")
"""Every revision in migrations/versions, oldest first; here so that opening a store needs no Alembic."""

_LOCK = 0x666F7265
"""Key of the PostgreSQL advisory lock that lets one process migrate at a time ("fore")."""


def prepare(catalogue: Catalogue, *, create: bool) -> None:
    """Make the tables of a fresh catalogue; refuse one that this release can't use.

    Raises:
        UnknownStore: there are no tables and `create` is false.
        OutdatedCatalogue: made by an older release.
        UnsupportedCatalogue: made by a newer release.
    """
    found = catalogue.read(revision)
    if found == REVISIONS[-1]:
        return
    if found is None:
        if not create:
            raise UnknownStore(f"{catalogue} holds no store; check the name, or put a prefix to make one")
        catalogue.write(_upgrade)
    elif _is_older(catalogue, found):
        raise OutdatedCatalogue(
            f"{catalogue} has schema {found}, this release needs {REVISIONS[-1]}; "
            "make a backup, then run: foreword store migrate"
        )


def migrate(catalogue: Catalogue) -> tuple[str | None, str]:
    """Bring the catalogue to the schema of this release: the revisions before and after.

    Raises:
        UnsupportedCatalogue: made by a newer release.
    """
    return catalogue.write(_upgrade)


def revision(connection: Connection) -> str | None:
    """The revision of the catalogue; None without tables."""
    if not sqlalchemy.inspect(connection).has_table("alembic_version"):
        return None
    found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return None if found is None else str(found)


def _is_older(catalogue: object, found: str) -> bool:
    if found not in REVISIONS:
        raise UnsupportedCatalogue(
            f"{catalogue} has schema {found}, this release knows up to {REVISIONS[-1]}; "
            "it was made by a newer Foreword: update this one"
        )
    return found != REVISIONS[-1]


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
