"""Eight processes at work on one store, killed at random; afterwards every promise is checked.

    python benchmarks/store_stress.py --database sqlite --seconds 60
    python benchmarks/store_stress.py --database postgres --seconds 60

Promises: nothing listed that can't be read, nothing readable that fails its digest, no file lost
that a version names, no acknowledged put lost. Garbage is collected without any grace time, which is
harder on the others than any sensible setting.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import sqlalchemy
import torch

import store_places
from foreword.errors import UnknownPrefix
from foreword.prefix import BaseIdentity, Prefix
from foreword.store import PrefixStore
from foreword.store.schema import blob, version

NAMES = [f"{owner}/{name}" for owner in ("ada", "ben", "cleo") for name in ("mail", "notes", "code", "chat")]
LABELS = ("production", "candidate", "old")


def make_prefixes(count: int) -> list[Prefix]:
    generator = torch.Generator().manual_seed(7)
    shape = (4, 2, 10, 32)
    base = BaseIdentity("tiny", fingerprint="00" * 32)
    return [
        Prefix(
            {part: torch.randn(shape, generator=generator) for part in ("decoder.key", "decoder.value")}, base
        )
        for _ in range(count)
    ]


def work(place: dict[str, str], prefixes: list[Prefix], worker: int, until: float, log: Path) -> None:
    """One process: random calls; what it was promised goes to its log."""
    digests = {prefix.digest for prefix in prefixes}
    chance = random.Random(f"{worker} {os.getpid()}")
    store = PrefixStore(**place, memory_bytes=0)
    with open(log / f"worker-{worker}", "a", buffering=1) as promised:
        while time.time() < until:
            name, prefix = chance.choice(NAMES), chance.choice(prefixes)
            action = chance.random()
            with contextlib.suppress(UnknownPrefix):
                if action < 0.25:
                    store.put(name, prefix)
                elif action < 0.35:
                    kept = store.put(f"worker{worker}/kept", prefix)
                    promised.write(f"{kept.reference} {kept.digest}\n")
                elif action < 0.40:
                    store.put_many({name: chance.choice(prefixes) for name in chance.sample(NAMES, 3)})
                elif action < 0.50:
                    store.label(name, chance.choice(LABELS))
                elif action < 0.55:
                    store.copy(name, chance.choice(NAMES))
                elif action < 0.70:
                    numbers = store.describe(name).numbers
                    store.delete(f"{name}@{chance.choice(numbers)}")
                elif action < 0.73:
                    store.delete(name, all_versions=True)
                elif action < 0.82:
                    assert store.get(name).digest in digests
                elif action < 0.85:
                    assert store.get(f"{name}@{chance.choice(LABELS)}").digest in digests
                elif action < 0.92:
                    for found in store.list(limit=20):
                        with contextlib.suppress(UnknownPrefix):  # deleted since
                            # By digest: a forgotten owner's numbers start again.
                            same = f"{found.owner}/{found.name}@sha256:{found.digest}"
                            assert store.get(same).digest == found.digest
                elif action < 0.925:
                    store.forget("cleo")
                else:
                    store.collect_garbage(grace=0)


def start(place: dict[str, str], prefixes: list[Prefix], worker: int, until: float, log: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        work(place, prefixes, worker, until, log)
        os._exit(0)
    except BaseException:
        (log / f"failure-{worker}-{os.getpid()}").write_text(traceback.format_exc())
        os._exit(1)


def check(place: dict[str, str], log: Path) -> dict[str, int]:
    """Hold the store against the promises, reading files with nothing but hashlib."""
    store = PrefixStore(**place, memory_bytes=0)
    folder = Path(place["blobs"])
    query = sqlalchemy.select(version, blob.c.key).join(blob, blob.c.digest == version.c.digest)
    rows = store.database.rows(query)
    by_reference = {}
    for row in rows:
        content = (folder / row.key).read_bytes()
        assert hashlib.sha256(content).hexdigest() == row.digest, f"{row.key} was altered"
        by_reference[f"{row.owner}/{row.name}@{row.number}"] = row.digest
    listed = list(store.each())
    for found in listed:
        assert store.get(found.reference).digest == found.digest
    promised = [line.split() for path in log.glob("worker-*") for line in path.read_text().splitlines()]
    for reference, digest in promised:
        assert by_reference.get(reference) == digest, f"{reference} was acknowledged and is gone"
    before = sum(1 for path in folder.rglob("*.prefix"))
    store.collect_garbage(grace=0)
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*.prefix")}
    named = {row.key for row in store.database.rows(query)}
    assert left == named, f"{len(left - named)} files too many, {len(named - left)} missing"
    assert not store.verify().problems
    return {
        "versions": len(rows),
        "listed": len(listed),
        "acknowledged": len(promised),
        "audit_entries": store.audit(limit=1)[0].id,
        "orphans_collected": before - len(left),
    }


def stress(place: dict[str, str], seconds: float, workers: int, seed: int) -> dict[str, float]:
    torch.set_num_threads(1)
    chance = random.Random(seed)
    prefixes = make_prefixes(25)
    for prefix in prefixes:
        _ = prefix.digest
    PrefixStore(**place).close()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder)
        until = time.time() + seconds
        pids = {worker: start(place, prefixes, worker, until, log) for worker in range(workers)}
        kills = 0
        while time.time() < until - 0.2:
            time.sleep(chance.uniform(0.05, 0.4))
            worker = chance.choice(list(pids))
            os.kill(pids[worker], signal.SIGKILL)
            os.waitpid(pids[worker], 0)
            kills += 1
            pids[worker] = start(place, prefixes, worker, until, log)
        for pid in pids.values():
            os.waitpid(pid, 0)
        failures = [path.read_text() for path in sorted(log.glob("failure-*"))]
        assert not failures, f"{len(failures)} failures, the first:\n{failures[0]}"
        return {"seconds": seconds, "workers": workers, "kills": kills, **check(place, log)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--database",
        default="sqlite",
        help="sqlite, postgres, or a URL",
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with store_places.opened(chosen.database) as place:
        json.dump(stress(place, chosen.seconds, chosen.workers, chosen.seed), sys.stdout)
        print()


if __name__ == "__main__":
    main()
