"""How fast the store is: a catalogue of a million prefixes, a prefix made ready, durable puts.

    python benchmarks/store.py catalogue --database sqlite
    python benchmarks/store.py catalogue --database postgres
    python benchmarks/store.py ready
    python benchmarks/store.py puts

`postgres` starts a server for the run; the URL of an empty database is taken too. One JSON object a
measurement. Concurrency and kills are in store_stress.py.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy
import torch

import store_places
from foreword.prefix import BaseIdentity, Prefix
from foreword.store import PrefixStore

NAMES_EACH = 100


def make_prefix(seed: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Prefix:
    generator = torch.Generator().manual_seed(seed)
    parts = {
        part: torch.randn(shape, generator=generator).to(dtype) for part in ("decoder.key", "decoder.value")
    }
    return Prefix(parts, BaseIdentity("tiny", fingerprint="00" * 32))


def timed(work: Callable[[], Any], count: int) -> dict[str, float]:
    """Milliseconds of `count` calls."""
    taken = []
    for _ in range(count):
        start = time.perf_counter()
        work()
        taken.append((time.perf_counter() - start) * 1000)
    taken.sort()
    return {
        "calls": count,
        "median_ms": round(statistics.median(taken), 3),
        "p99_ms": round(taken[int(count * 0.99)], 3),
        "max_ms": round(taken[-1], 3),
    }


def report(what: str, **figures: Any) -> None:
    print(json.dumps({"what": what, **figures}), flush=True)


# -- a million prefixes ------------------------------------------------------------------------


def fill(store: PrefixStore, count: int) -> None:
    """Rows made inside the database: what is measured is reading them."""
    store.put_many({f"seed/p{i}": make_prefix(i, (1, 1, 1, 4)) for i in range(100)})
    numbers = (
        f"WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {count - 1})"
        if store.database.is_sqlite
        else f"WITH n AS (SELECT i FROM generate_series(0, {count - 1}) AS i)"
    )

    def padded(value: str, width: int) -> str:
        return f"substr(CAST({10**width} + {value} AS TEXT), 2)"

    owner = f"'owner' || {padded(f'i / {NAMES_EACH}', 6)}"
    name = f"'prefix' || {padded(f'i % {NAMES_EACH}', 3)}"
    rows = {
        "prefix (owner, name, public, counter, latest, base)": (
            f"SELECT {owner}, {name}, i % 50 = 0, 1, 1, 'base' || (i % 7) FROM n"
        ),
        "version (owner, name, number, digest, created, base, length, dtype, facts)": (
            f"SELECT {owner}, {name}, 1, d.digest, '2026-01-01', 'base' || (i % 7), 1, 'float32', '{{}}' "
            "FROM n JOIN (SELECT digest, CAST(substr(name, 2) AS INTEGER) AS k FROM version "
            "WHERE owner = 'seed') d ON d.k = i % 100"
        ),
        "label (owner, name, label, number)": (
            f"SELECT {owner}, {name}, 'production', 1 FROM n WHERE i % 10 = 0"
        ),
        "share (grantee, owner, name)": f"SELECT 'owner000001', {owner}, {name} FROM n WHERE i % 200 = 7",
    }
    for table, query in rows.items():
        statement = (
            f"INSERT INTO {table} {numbers} {query}"
            if not store.database.is_sqlite
            else f"{numbers} INSERT INTO {table} {query}"
        )
        prepared = sqlalchemy.text(statement)
        store.database.write(lambda connection, prepared=prepared: connection.execute(prepared))
    if not store.database.is_sqlite:  # what autovacuum would do a minute later
        store.database.write(lambda connection: connection.exec_driver_sql("ANALYZE"))


def catalogue(database: str, count: int) -> None:
    chance = random.Random(0)
    with store_places.opened(database) as place, PrefixStore(**place) as store:
        start = time.perf_counter()
        fill(store, count)
        backend = "sqlite" if store.database.is_sqlite else "postgresql"
        report("fill", database=backend, prefixes=count, seconds=round(time.perf_counter() - start, 1))

        def some_name() -> str:
            i = chance.randrange(count)
            return f"owner{i // NAMES_EACH:06d}/prefix{i % NAMES_EACH:03d}"

        def own_get() -> None:
            name = some_name()
            store.as_owner(name.split("/")[0]).get(name)

        for what, work in {
            "lookup by name (get, file cached)": lambda: store.get(some_name()),
            "lookup by name (get as owner)": own_get,
            "lookup by name and number": lambda: store.get(some_name() + "@1"),
            "describe": lambda: store.describe(some_name()),
        }.items():
            timed(work, 300)
            report(what, database=backend, **timed(work, 5000))
        views = {"administrator": store, "owner": store.as_owner("owner000001")}
        for who, view in views.items():
            for what, filters in {
                "page": lambda: {},
                "page, label": lambda: {"label": "production"},
                "page, base": lambda: {"base": "base3"},
                "page, owner": lambda: {"owner": some_name().split("/")[0]},
                "page, owner and name": lambda: {"owner": some_name().split("/")[0], "name": "prefix01"},
            }.items():

                def page(view: PrefixStore = view, filters: Callable[[], dict[str, str]] = filters) -> None:
                    view.list(after=some_name(), **filters())

                timed(page, 20)
                report(f"{what} of 100, anywhere", database=backend, who=who, **timed(page, 500))


# -- ready for the model -----------------------------------------------------------------------


def ready() -> None:
    torch.set_num_threads(1)
    for dtype in (torch.float32, torch.float16):
        with tempfile.TemporaryDirectory() as folder:
            _ready(folder, dtype)


def _ready(folder: str, dtype: torch.dtype) -> None:
    names = [f"a/p{i}" for i in range(200)]
    made = [make_prefix(i, (30, 3, 10, 64), dtype) for i in range(200)]
    PrefixStore(folder).put_many(dict(zip(names, made, strict=True)))
    for path in Path(folder).rglob("*.prefix"):
        _drop_from_memory(path)
    cold, warm = PrefixStore(folder, memory_bytes=0), PrefixStore(folder)
    left = iter(names)
    cold.get(next(left))  # imports
    warm.get(names[0])
    figures = {"bytes": len(made[0].to_bytes()), "dtype": str(dtype).removeprefix("torch.")}
    report("cold: from the disk, checked", **figures, **timed(lambda: cold.get(next(left)), 199))
    report("cached in memory", **figures, **timed(lambda: warm.get(names[0]), 5000))


def _drop_from_memory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


# -- durable puts ------------------------------------------------------------------------------


def puts(database: str, count: int) -> None:
    torch.set_num_threads(1)
    with store_places.opened(database) as place:
        PrefixStore(**place).close()
        made = [make_prefix(i, (30, 3, 10, 64), torch.float16) for i in range(count)]
        for prefix in made:
            _ = prefix.digest
        size = len(made[0].to_bytes())

        def rate(what: str, work: Callable[[PrefixStore], None]) -> None:
            with PrefixStore(**place) as store:
                for version in list(store.each()):
                    store.delete(version.reference)
                store.collect_garbage(grace=0)
                start = time.perf_counter()
                work(store)
                seconds = time.perf_counter() - start
                stored = sum(1 for _ in store.each())
                if stored < count:
                    raise SystemExit(f"{what}: {stored} of {count} are listed")
            report(what, puts_per_second=round(count / seconds), puts=count, bytes_each=size)

        def one_by_one(store: PrefixStore) -> None:
            for i, prefix in enumerate(made):
                store.put(f"one/p{i}", prefix)

        def in_batches(store: PrefixStore) -> None:
            for start in range(0, count, 50):
                store.put_many({f"many/p{i}": made[i] for i in range(start, min(start + 50, count))})

        def by_processes(_: PrefixStore) -> None:
            context = multiprocessing.get_context("fork")
            parts = [context.Process(target=_put_part, args=(place, made, part, 4)) for part in range(4)]
            for process in parts:
                process.start()
            for process in parts:
                process.join()

        rate("one writer, one by one", one_by_one)
        rate("four processes, one by one", by_processes)
        rate("one writer, batches of 50", in_batches)


def _put_part(place: dict[str, str], made: list[Prefix], part: int, parts: int) -> None:
    with PrefixStore(**place) as store:
        for i in range(part, len(made), parts):
            store.put(f"proc/p{i}", made[i])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["catalogue", "ready", "puts"])
    parser.add_argument("--database", default="sqlite", help="sqlite, postgres, or a URL")
    parser.add_argument("--count", type=int, help="prefixes in the catalogue (1000000), or puts (1000)")
    chosen = parser.parse_args()
    if chosen.what == "catalogue":
        catalogue(chosen.database, chosen.count or 1_000_000)
    elif chosen.what == "ready":
        ready()
    else:
        puts(chosen.database, chosen.count or 1000)


if __name__ == "__main__":
    main()
