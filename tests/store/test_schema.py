"""The catalogue's tables: made once, brought up to date on request, refused when newer."""

import json
import subprocess
import sys

import pytest
import sqlalchemy
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from foreword.errors import OutdatedCatalogue, UnknownStore, UnsupportedCatalogue
from foreword.store import PrefixStore
from foreword.store.database import Database
from foreword.store.schema import (
    REVISIONS,
    blob,
    blob_owner,
    metadata,
    migrate,
    open_to_migrate,
    revision,
    version,
)


def at_revision(catalogue, target):
    def work(connection):
        config = Config()
        config.set_main_option("script_location", "foreword.store:migrations")
        config.attributes["connection"] = connection
        command.upgrade(config, target)

    catalogue.write(work)


def test_migrations_make_exactly_the_declared_tables(store):
    differences = store.database.read(
        lambda connection: compare_metadata(MigrationContext.configure(connection), metadata)
    )
    assert differences == []


def test_listed_revisions_are_those_of_the_scripts():
    config = Config()
    config.set_main_option("script_location", "foreword.store:migrations")
    scripts = list(ScriptDirectory.from_config(config).walk_revisions())
    assert tuple(script.revision for script in reversed(scripts)) == REVISIONS


def test_older_catalogue_is_refused_until_migrated_and_keeps_its_rows(place, prefixes):
    if "checkpoints" not in place.arguments:
        place.arguments["place"].mkdir()
    old = Database(place.database)
    at_revision(old, "0001")
    old.write(
        lambda c: c.exec_driver_sql(
            "INSERT INTO prefix (owner, name, public, counter, latest, base) "
            "VALUES ('a', 'x', false, 7, NULL, NULL)"
        )
    )
    old.close()
    with pytest.raises(OutdatedCatalogue, match="foreword store migrate"):
        place.open()
    assert migrate(open_to_migrate(place.arguments["place"])) == ("0001", REVISIONS[-1])
    assert migrate(open_to_migrate(place.arguments["place"])) == (REVISIONS[-1], REVISIONS[-1])
    assert place.open().put("a/x", prefixes()).number == 8


def test_facts_beyond_the_limit_lose_their_notes_and_fingerprints_become_columns(place):
    """As of a file whose header was longer than a header may be by now."""
    if "checkpoints" not in place.arguments:
        place.arguments["place"].mkdir()
    old = Database(place.database)
    at_revision(old, "0004")

    def fill(connection):
        put = connection.exec_driver_sql
        put("INSERT INTO prefix (owner, name, public, counter, latest) VALUES ('a', 'x', false, 3, 3)")
        put(
            f"INSERT INTO blob (digest, key, size, ready, touched) VALUES ('{'d' * 64}', 'k', 9, true, 'then')"
        )
        many = {f"note {n}": "x" * 90 for n in range(900)}
        for number, (notes, mark) in enumerate(
            [({"a": "b"}, "ab" * 32), (many, "ab" * 32), ({}, "\ud800\0")], 1
        ):
            facts = json.dumps({"base": {"fingerprint": mark}, "notes": notes, "licence": "MIT"})
            put(
                "INSERT INTO version (owner, name, number, digest, created, base, length, dtype, facts) "
                f"VALUES ('a', 'x', {number}, '{'d' * 64}', 'then', 'tiny', 3, 'float32', '{facts}')"
            )

    old.write(fill)
    old.close()
    database = open_to_migrate(place.arguments["place"])
    migrate(database)
    rows = database.rows(sqlalchemy.select(version).order_by(version.c.number))
    assert [row.fingerprint for row in rows] == ["ab" * 32, "ab" * 32, "?"]  # no database holds half a pair
    assert [row.facts["notes"] for row in rows] == [{"a": "b"}, {}, {}]
    assert rows[1].facts["licence"] == "MIT"
    assert [row.checked for row in database.rows(sqlalchemy.select(blob))] == ["then"]
    assert [tuple(row) for row in database.rows(sqlalchemy.select(blob_owner))] == [("a", "d" * 64)]


def test_newer_catalogue_is_refused_and_untouched(place, prefixes):
    store = place.open()
    store.put("a/x", prefixes())
    store.database.write(lambda c: c.exec_driver_sql("UPDATE alembic_version SET version_num = '0999'"))
    store.close()
    with pytest.raises(UnsupportedCatalogue, match="update this one"):
        place.open()
    with pytest.raises(UnsupportedCatalogue):
        migrate(open_to_migrate(place.arguments["place"]))
    assert Database(place.database).read(revision) == "0999"


def test_migrating_nothing_is_refused(tmp_path, postgres_place):
    with pytest.raises(UnknownStore):
        open_to_migrate(tmp_path)
    with pytest.raises(UnknownStore):
        open_to_migrate(postgres_place.database)


def test_failed_migration_leaves_no_table_behind(place, monkeypatch):
    if "checkpoints" not in place.arguments:
        place.arguments["place"].mkdir()
    from alembic import op

    create_index, calls = op.create_index, []

    def fail_later(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 3:
            raise RuntimeError("pulled plug")
        return create_index(*arguments, **options)

    monkeypatch.setattr(op, "create_index", fail_later)
    with pytest.raises(RuntimeError):
        place.open()
    monkeypatch.undo()
    inspected = Database(place.database).read(lambda c: sqlalchemy.inspect(c).get_table_names())
    assert inspected == []
    assert len(place.open().list()) == 0


def test_processes_that_open_a_fresh_store_at_once_all_succeed(place):
    arguments = {name: str(value) for name, value in place.arguments.items()}
    program = "import sys, json; from foreword.store import PrefixStore; PrefixStore(**json.loads(sys.argv[1])).list()"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, json.dumps(arguments)], stderr=subprocess.PIPE, text=True
        )
        for _ in range(6)
    ]
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert isinstance(place.open(), PrefixStore)
