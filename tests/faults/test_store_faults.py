"""What a store is asked to do, with every point of it failing once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from faults.boundary import OF_DATABASES
from faults.scenarios import Operation as Op
from faults.scenarios import Scenario
from faults.store_world import OTHERS, StoreWorld
from foreword.errors import PrefixExists, UnknownPrefix
from foreword.store import PrefixStore
from support.stores import make_prefix


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
    assert outcome.points > 40


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
    )
    injected(scenario, StoreWorld(world_folder, database, empty=True), postgres=database is not None)
