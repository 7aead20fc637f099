"""What a store is asked to do, with every point of it failing once."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from faults.boundary import OF_DATABASES, Point
from faults.scenarios import Operation as Op
from faults.scenarios import Scenario
from faults.store_world import OTHERS, StoreWorld, rows_of
from foreword.errors import DamagedBlob, PrefixExists, StorageLimitExceeded, UnknownPrefix
from foreword.serving.jobs import uploads
from foreword.store import PrefixStore, quota, schema, usage
from foreword.store.access import ADMINISTRATOR
from foreword.store.schema import blob, now
from support.stores import make_prefix, run_sql


def put(name: str, seed: int) -> Op:
    return Op(f"put {name}", lambda world: world.store.put(name, make_prefix(seed)))


class Filled(StoreWorld):
    """Two owners with a few prefixes."""

    def setup(self, store: PrefixStore) -> None:
        for seed, name in enumerate(["a/x", "a/x", "a/y", "b/z"]):
            store.put(name, make_prefix(seed))
        store.put("b/same", make_prefix(0))
        store.label("a/x@1", "production")
        store.share("a/x", "b")
        store.share("b/z", "a")
        folder = store.checkpoint_folder("a")
        folder.mkdir(parents=True)
        (folder / "step-0000001.checkpoint").write_bytes(b"x" * 1000)


PUTS = Scenario(
    "put, again, another version, the same for another, several, get",
    [
        put("c/x", 10),
        put("c/x", 10),
        put("c/x", 11),
        put("b/again", 10),
        Op(
            "put_many",
            lambda world: world.store.put_many({"c/one": make_prefix(12), "c/two": make_prefix(13)}),
        ),
        Op("get", lambda world: world.store.get("c/x")),
    ],
)


def test_put(world_folder: Path, database: str | None, injected: Any) -> None:
    injected(PUTS, Filled(world_folder, database), postgres=database is not None)


def test_put_in_a_bucket(world_folder: Path, injected: Any) -> None:
    tolerated = {
        "store/cache.py:_write": "a copy in the cache; without it, the next call reads the bucket",
        "store/cache.py:put": "as above",
    }
    delete = Op("delete", lambda world: world.store.delete("a/y@1"), (UnknownPrefix,))
    collect = Op("collect garbage", lambda world: world.store.collect_garbage(grace=0))
    operations = [*PUTS.operations, delete, collect]
    scenario = dataclasses.replace(
        PUTS,
        name="puts in a bucket",
        operations=operations,
        tolerated=tolerated,
        only=lambda point: point.kind not in OF_DATABASES,
    )
    injected(scenario, Filled(world_folder, bucket=True))


def again_by_owner(world: StoreWorld) -> None:
    """Another owner stores the same bytes, and is told that they are stored."""
    with world.fresh().store as other:
        other.as_owner(OTHERS).put(f"{OTHERS}/same", make_prefix(10))


def collect_beside(world: StoreWorld) -> None:
    """Garbage is collected without any grace."""
    with world.fresh().store as other:
        other.collect_garbage(grace=0)


FILES = ("create", "write", "flush", "rename", "delete", "make folder", "put object", "delete object")


def test_the_same_bytes_of_another_owner_at_the_same_moment(
    world_folder: Path, database: str | None, injected: Any
) -> None:
    """Where a file is written; in a transaction the other would wait for its end."""
    scenario = Scenario(
        "the same bytes of two owners at the same moment",
        [put("c/x", 10)],
        meanwhile=again_by_owner,
        only=lambda point: point.kind in FILES,
    )
    injected(scenario, Filled(world_folder, database), postgres=database is not None)


def test_garbage_collection_beside(world_folder: Path, database: str | None, injected: Any) -> None:
    forget = Op("forget", lambda world: world.store.forget("b"), whole=False)
    scenario = Scenario(
        "garbage collection beside a put and a forget",
        [put("c/x", 10), forget],
        meanwhile=collect_beside,
        only=lambda point: point.kind in FILES,
    )
    injected(scenario, Filled(world_folder, database), postgres=database is not None)


def test_labels_copies_shares_and_keys(world_folder: Path, database: str | None, injected: Any) -> None:
    def revoke(world: StoreWorld) -> None:
        for key in world.store.list_keys("a"):
            world.store.revoke_key(key.id)

    scenario = Scenario(
        "labels, copies, shares, keys",
        [
            Op("label", lambda world: world.store.label("a/x@2", "tested")),
            Op("move a label", lambda world: world.store.label("a/x@2", "production")),
            Op("unlabel", lambda world: world.store.unlabel("a/x", "tested"), (UnknownPrefix,)),
            Op("copy", lambda world: world.store.copy("a/y", "a/copied")),
            Op("share", lambda world: world.store.share("a/y", "b")),
            Op("unshare", lambda world: world.store.unshare("a/x", "b")),
            Op("publish", lambda world: world.store.publish("a/y")),
            # Whoever lost the answer has no secret: the key is there, and is revoked by its id.
            Op("create_key", lambda world: world.store.create_key("a", "owner"), None),
            Op("revoke_key", revoke),
        ],
        sparse=True,  # each operation is a site of its own
    )
    injected(scenario, Filled(world_folder, database), postgres=database is not None)


def test_delete_collect_and_forget(world_folder: Path, database: str | None, injected: Any) -> None:
    scenario = Scenario(
        "delete, collect garbage, forget",
        [
            Op("delete", lambda world: world.store.delete("a/x@2"), (UnknownPrefix,)),
            Op(
                "delete all",
                lambda world: world.store.delete("a/y", all_versions=True),
                (UnknownPrefix,),
            ),
            Op("collect garbage", lambda world: world.store.collect_garbage(grace=0)),
            Op("forget", lambda world: world.store.forget("a")),
            put("a/x", 20),
        ],
    )
    outcome = injected(scenario, Filled(world_folder, database), postgres=database is not None)
    assert outcome.failures > 100


def test_export_and_import(world_folder: Path, database: str | None, injected: Any) -> None:
    def write(world: StoreWorld) -> None:
        world.store.export_owner("a", world.folder / "a.zip", overwrite=True)

    scenario = Scenario(
        "export, import to another owner",
        [
            Op("export", write),
            Op(
                "import",
                lambda world: world.store.import_owner(world.folder / "a.zip", owner="d"),
                (PrefixExists,),
            ),
        ],
    )
    injected(scenario, Filled(world_folder, database), postgres=database is not None)


def test_first_opening(world_folder: Path, database: str | None, injected: Any) -> None:
    """The tables are made in one transaction; each statement of theirs fails as the first and the last do."""
    scenario = Scenario(
        "a store is made, and used",
        [Op("open", lambda world: world.store), put("a/x", 1)],
        only=lambda point: "migrations" not in point.site or point.number <= 2,
        sparse=True,
    )
    injected(scenario, StoreWorld(world_folder, database, empty=True), postgres=database is not None)


def at(*files: str) -> Callable[[Point], bool]:
    """The points of what a scenario adds to those above, by parts of their sites."""
    return lambda point: any(file in point.site for file in files)


class Rotten(Filled):
    """Two files have gone bad since: one was altered, one is missing."""

    def setup(self, store: PrefixStore) -> None:
        super().setup(store)
        keys = {row.digest: row.key for row in rows_of(store, "blob")}
        folder = Path(str(store.blobs))
        (folder / keys[make_prefix(2).digest]).write_bytes(b"rotten")
        (folder / keys[make_prefix(3).digest]).unlink()
        long_ago = blob.update().values(checked=now(1000.0))
        store.database.write(lambda connection: connection.execute(long_ago))

    def content(self, store: PrefixStore, key: str, digest: str) -> str:
        try:
            return super().content(store, key, digest)
        except DamagedBlob as error:
            return type(error).__name__


def test_scrubbing(world_folder: Path, database: str | None, injected: Any) -> None:
    """What is wrong with a file is noted, and a put mends it; the rest of a put fails in `test_put`.

    Files are read in blobs.py: one that can't be read is called unreadable.
    """

    def check(world: StoreWorld) -> None:
        world.store.check_files(older_than=60.0, pause=lambda seconds: False)

    def verify(world: StoreWorld) -> None:
        assert len(world.store.verify().problems) == 2

    def mended(name: str, seed: int) -> Op:  # first the file, then what is noted of it
        return dataclasses.replace(put(name, seed), whole=False)

    scenario = Scenario(
        "check files, verify, put again what is damaged",
        [Op("check", check, whole=False), Op("verify", verify), mended("a/y", 2), mended("b/z", 3)],
        only=at("tasks.py", "maintenance.py", "leases.py"),
        sparse=True,
    )
    injected(scenario, Rotten(world_folder, database), postgres=database is not None)


class Limited(StoreWorld):
    """What counts for an owner is what is stored."""

    def check_clean(self) -> list[str]:
        left = super().check_clean()
        with PrefixStore(**self.arguments) as store:
            sizes = {row.digest: row.size for row in rows_of(store, "blob")}
            stored = {row.owner: int(row.bytes) for row in store.database.rows(quota.stored())}
            expected = Counter[str]()
            for owner, digest in {(row.owner, row.digest) for row in rows_of(store, "version")}:
                expected[owner] += sizes[digest]
            for row in rows_of(store, "upload"):
                expected[row.owner] += row.size
        return left + ([] if stored == expected else [f"counted {stored}, stored {expected}"])


def test_a_limit_of_stored_bytes(world_folder: Path, database: str | None, injected: Any) -> None:
    limit = len(make_prefix(1).to_bytes()) * 3 // 2

    def upload(world: StoreWorld) -> None:
        line = b'{"source": "a", "target": "b"}\n'
        uploads.add(world.store.database, ADMINISTRATOR, "a", "mine.jsonl", line, limit=limit)

    def put_limited(name: str, seed: int) -> Op:
        return Op(f"put {name}", lambda world: world.store.put(name, make_prefix(seed), limit=limit))

    def refused(world: StoreWorld) -> None:
        with pytest.raises(StorageLimitExceeded):
            world.store.put("a/y", make_prefix(2), limit=limit)

    scenario = Scenario(
        "put within a limit, beyond it, delete, put",
        [
            put_limited("a/x", 1),
            Op("put too much", refused),
            Op("upload", upload, None),
            Op("delete", lambda world: world.store.delete("a/x@1"), (UnknownPrefix,)),
            Op("collect garbage", lambda world: world.store.collect_garbage(grace=0)),
            put_limited("a/y", 2),
        ],
        only=at("quota.py", "leases.py", "uploads.py"),
        sparse=True,
    )
    injected(scenario, Limited(world_folder, database), postgres=database is not None)


class Metered(Filled):
    """With a server's meter, which a process that is killed takes with it."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.meter: usage.Meter | None = None

    def fresh(self) -> StoreWorld:
        other = super().fresh()
        other.__dict__["meter"] = None
        return other


def test_usage(world_folder: Path, database: str | None, injected: Any) -> None:
    """What is counted is written once, with one exception: a lost answer to the commit is not asked again here."""

    def flush(world: Metered) -> None:
        if world.meter is None:
            world.meter = usage.Meter()
            world.meter.add("a", requests=1, prompt_tokens=20)
            world.meter.add("b", requests=2)
        world.meter.flush(world.store.database)

    def read(world: Metered) -> None:
        assert [row.prompt_tokens for row in world.store.usage(owner="a")] == [20]

    scenario = Scenario(
        "flush a meter, note stored bytes, read usage",
        [
            Op("flush", flush, None),
            Op("stored bytes", lambda world: usage.sample_stored_bytes(world.store.database)),
            Op("read", read),
        ],
        only=at("usage.py"),
        sparse=True,
    )
    injected(scenario, Metered(world_folder, database), postgres=database is not None)


OLD_STORE = Path(__file__).parents[1] / "upgrade" / "fixtures" / "stores" / "0004"


class OldStore(StoreWorld):
    """A store of an earlier release, of the fixtures of tests/upgrade."""

    def __init__(self, folder: Path, database: str | None) -> None:
        super().__init__(folder, database, empty=True)

    def prepare(self) -> None:
        store = self._template if self._database else self._template / "store"
        shutil.copytree(OLD_STORE / "blobs", store / "blobs")
        if self._database is None:
            shutil.copy(OLD_STORE / "catalogue.sqlite", store)

    def reset(self) -> None:
        super().reset()
        if self._database is not None:
            run_sql(self._database, (OLD_STORE / "postgresql.sql").read_text())

    def state(self) -> dict[str, Any]:
        database = schema.open_to_migrate(self.arguments["place"])
        found = database.read(schema.revision)
        rows = database.read(lambda c: c.exec_driver_sql("SELECT digest FROM version ORDER BY 1").all())
        database.close()
        if found == schema.REVISIONS[-1]:
            return super().state()
        return {"revision": found, "versions": [row.digest for row in rows]}


def test_an_upgrade_of_a_database(world_folder: Path, database: str | None, injected: Any) -> None:
    """It is done in one transaction: of the statements of each step, one fails in each way."""
    migrate = Op("migrate", lambda world: schema.migrate(schema.open_to_migrate(world.arguments["place"])))
    scenario = Scenario(
        "upgrade, put", [migrate, put("a/x", 1)], only=at("schema.py", "migrations"), sparse=True
    )
    injected(scenario, OldStore(world_folder, database), postgres=database is not None)
