"""Eight processes on one store, killed at random: the promises hold afterwards.

A short form of `benchmarks/store_stress.py`; FOREWORD_STRESS_SECONDS=60 makes it the long one.
"""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from foreword.store import PrefixStore

STRESS = Path(__file__).parents[2] / "benchmarks" / "store_stress.py"
SECONDS = os.environ.get("FOREWORD_STRESS_SECONDS", "8")


def test_processes_killed_at_random_lose_and_damage_nothing(place):
    database = "sqlite" if place.database.startswith("sqlite") else place.database
    done = subprocess.run(
        [sys.executable, STRESS, "--database", database, "--seconds", SECONDS],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    seen = json.loads(done.stdout)
    assert seen["kills"] >= 3
    assert seen["acknowledged"] >= 3
    assert seen["versions"] >= 3


def test_threads_share_one_store(store, prefixes):
    values = [prefixes(seed) for seed in range(24)]
    failures = []

    def work(part):
        try:
            for index in range(part, 24, 6):
                store.put(f"a/p{index}", values[index])
                store.put("a/common", values[index])
                assert store.get(f"a/p{index}") == values[index]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(part,)) for part in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert store.describe("a/common").numbers == tuple(range(1, 25))
    assert len(store.list()) == 25


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_store_that_was_open_before_a_fork_works_in_parent_and_child(store, prefixes):
    store.put("a/before", prefixes(1))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            store.put("a/child", prefixes(2))
            code = 0 if store.get("a/before") == prefixes(1) else 2
        finally:
            os._exit(code)
    for seed in range(3, 8):
        store.put("a/parent", prefixes(seed))
    assert os.waitpid(child, 0)[1] == 0
    assert [v.name for v in store.each()] == ["before", "child", "parent"]


def test_view_and_store_are_one_store(sqlite_store: PrefixStore, prefixes):
    sqlite_store.as_owner("a").put("a/x", prefixes())
    assert sqlite_store.get("a/x") is sqlite_store.as_owner("a").get("a/x")
