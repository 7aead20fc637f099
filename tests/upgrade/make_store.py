"""Fill an empty store with the code that is on the path, today's or an older release's, and tell what is in it.

    python make_store.py FOLDER

A process of its own, so that `make_fixtures.py` can run it with the code of another commit. Run by itself it makes
the fixture of a new revision, with the code that has it as its newest; what it makes is there to stay.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from foreword.prefix import BaseIdentity, Origin, Prefix
from foreword.store import PrefixStore
from foreword.template import Template


def prefix(first: int, **changes: Any) -> Prefix:
    """A prefix of whole numbers."""
    shape = (2, 2, 3, 4)
    count = 2 * 2 * 3 * 4
    return Prefix(
        tensors={
            "decoder.key": (torch.arange(count) + first).reshape(shape).float() / 64,
            "decoder.value": (torch.arange(count) - first).reshape(shape).float() / 32,
        },
        base=BaseIdentity("tiny", None, "ab" * 32),
        template=Template(end="<end>"),
        origin=Origin("direct", "words", 3, "cd" * 32, 12, 40, 1.25),
        created="2026-01-02T03:04:05+00:00",
        **changes,
    )


def fill(store: PrefixStore) -> dict[str, Any]:
    """Everything that a store of the time can hold; returns what a reader has to find."""
    store.put("alice/reviews", prefix(1))
    store.put("alice/reviews", prefix(2, labels={"note": "größer"}, licence="CC0-1.0"))
    store.put("alice/reviews", prefix(3))
    store.put("alice/notes", prefix(4))
    store.put("bob/reviews", prefix(1))  # the same file as one of alice's
    store.put("bob/open", prefix(5))
    store.put("carol/gone", prefix(6))
    store.put("carol/kept", prefix(7))
    store.delete("carol/gone@1")
    store.delete("alice/reviews@3")
    store.label("alice/reviews@1", "stable")
    store.label("alice/reviews@2", "trial")
    store.share("alice/reviews", "bob")
    store.publish("bob/open")
    keys = {
        "alice": store.create_key("alice", "owner", note="of the fixtures"),
        "bob": store.create_key("bob", "reader"),
        "administrator": store.create_key(None, "admin"),
        "revoked": store.create_key("alice", "owner"),
    }
    store.revoke_key(keys["revoked"].record.id)
    if hasattr(store, "declare_equivalent"):
        store.declare_equivalent("ab" * 32, "ef" * 32, loss_difference=0.25, by="ana", facts={"targets": 9})
    if hasattr(store, "usage"):
        _add_usage(store)
    with contextlib.suppress(ImportError):
        _add_job_with_checkpoint(store)
    return {"secrets": {name: key.secret for name, key in keys.items()}}


def _add_usage(store: PrefixStore) -> None:
    from foreword.store import usage

    for owner, tokens in (("alice", 40), ("bob", 7)):
        counts = {"requests": 1, "prompt_tokens": tokens}
        store.database.write(lambda c, o=owner, n=counts: usage.add(c, o, "2026-01-02", **n))


def _add_job_with_checkpoint(store: PrefixStore) -> None:
    """A job as a worker leaves it that was killed."""
    from foreword.serving.jobs import checkpoints, queue
    from foreword.store.access import Caller

    record = queue.Job(
        id="ftjob-000000000000000000000001",
        owner="alice",
        created="2026-01-02T03:04:05.000000+00:00",
        state="queued",
        model="tiny",
        name="reviews",
        training_file="file-000000000000000000000001",
        validation_file=None,
        settings={"steps": 20, "seed": 0, "template": Template().to_json(), "start": None},
        alike="0" * 64,
        asked={"hyperparameters": {"steps": 20}, "metadata": None},
    )
    queue.add(store.database, Caller("alice", "owner"), record, limit=None)
    (claimed,) = queue.claim(store.database, "killed", 1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "step-0000005.checkpoint")
        file.write_bytes(b"what a job goes on from")
        checkpoints.save(store, "killed", claimed, file)


def _checkpoints(store: PrefixStore) -> list[dict[str, Any]]:
    try:
        from foreword.store.schema import job_checkpoint  # noqa: F401
    except ImportError:  # before revision 0006
        return []
    query = "SELECT job, owner, step, digest FROM job_checkpoint"
    rows = store.database.read(lambda connection: connection.exec_driver_sql(query).all())
    return [dict(row._mapping) for row in rows]


def contents(store: PrefixStore) -> dict[str, Any]:
    """All that a store says of what is in it."""
    return {
        "versions": [version.to_json() for version in store.each()],
        "described": {
            name: store.describe(name).to_json()
            for name in ("alice/reviews", "alice/reviews@stable", "bob/open", "carol/kept")
        },
        "keys": [key.to_json() for key in store.list_keys()],
        "audit": [entry.to_json() for entry in store.audit()],
        **({"equivalences": _equivalences(store)} if hasattr(store, "equivalences") else {}),
        **({"usage": [row.to_json() for row in store.usage()]} if hasattr(store, "usage") else {}),
        "checkpoints": _checkpoints(store),
        "seen by bob": [version.reference for version in store.as_owner("bob").each()],
    }


def _equivalences(store: PrefixStore) -> list[dict[str, Any]]:
    return [one.to_json() for one in store.equivalences()]


if __name__ == "__main__":
    with PrefixStore(sys.argv[1]) as opened:
        told = fill(opened) | contents(opened)
    Path(sys.argv[1], "expected.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
