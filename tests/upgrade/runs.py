"""Training runs that the fixtures hold half done: how each was called, and how it is called again."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foreword.parameterization import ParameterizationSettings

from foreword import BaseModel, Prefix, PrefixStore, train, train_many
from foreword.errors import OutdatedCatalogue
from upgrade.surface import FIXTURES, all_commands, examples

COMMON: dict[str, Any] = {"length": 4, "steps": 20, "batch_size": 4, "seed": 3, "checkpoint_every": 4}

RUNS: dict[str, dict[str, Any]] = {
    "direct": {
        "evaluate_every": 3,
        "patience": 9,
        "clip": 0.5,
        "accumulate": 2,
        "warmup": 4,
        "weight_decay": 0.01,
        "$dev": True,
    },
    "defaults": {},
    "mlp": {"parameterization": ParameterizationSettings(kind="mlp", width=8), "reduction": "sequence"},
    "mlp-start": {
        "parameterization": ParameterizationSettings(kind="mlp+start", width=8, freeze_first=True),
        "layers": "last:1",
        "init": "demonstrations",
    },
    "embedding": {"parameterization": "embedding", "init": "text:a text to begin at"},
    "infix": {"placement": "infix", "max_length": 60},
    "from-prefix": {"$start": True},
    "window": {"$base": "tiny-window"},
    "streams": {"length": {"encoder": 2, "decoder": 3, "cross": 1}, "$base": "tiny-seq2seq"},
}
"""Keywords of `train` beside the common ones."""

MANY_OWNERS = {"anna": examples(6), "ben/2": examples(7, 6), "çelik": examples(5, 13)}
MANY: dict[str, Any] = {
    **COMMON,
    "clip": 0.5,
    "accumulate": 2,
    "places": 2,
    "pass_tokens": 400,
    "isolated": True,
}


def run_one(
    name: str, base: BaseModel, folder: Path, on_progress: Callable[[Any], None] | None = None
) -> Prefix:
    """Begin or go on with one of the runs."""
    settings = {key: value for key, value in RUNS[name].items() if not key.startswith("$")}
    if "$dev" in RUNS[name]:
        settings["dev"] = examples(5, 30)
    if "$start" in RUNS[name]:
        settings["start"] = Prefix.load(FIXTURES / "prefixes" / "default.prefix")
    return train(base, examples(), checkpoint_dir=folder, on_progress=on_progress, **{**COMMON, **settings})


def run_many(
    base: BaseModel, folder: Path, on_progress: Callable[[Any], None] | None = None
) -> dict[str, Prefix]:
    """Begin or go on with the run of many owners."""
    dev = {"ben/2": examples(3, 40)}
    return train_many(base, MANY_OWNERS, dev=dev, checkpoint_dir=folder, on_progress=on_progress, **MANY)


_TRAIN = ["train", "data.jsonl", "--base", "tiny-llama", "--device", "cpu", "--dtype", "float32"]
_SHORT = ["--length", "4", "--steps", "12", "--batch-size", "4", "--checkpoint-every", "3", "--clip", "0.5"]
COMMANDS: dict[str, list[str]] = {
    "one": [*_TRAIN, *_SHORT, "--accumulate", "2", "--dev", "dev.jsonl", "--out", "one.prefix"],
    "by-owner": [*_TRAIN, *_SHORT, "--by", "owner", "--places", "1", "--isolated", "--out", "prefixes"],
    "into-store": [
        *(*_TRAIN, *_SHORT, "--by", "owner", "--places", "1", "--pass-tokens", "500"),
        *("--name", "style", "--store", "store", "--label", "a=b"),
    ],
}
"""Command lines, in a folder with the data and the base."""
COMMAND_OWNERS = ("anna", "ben", "cleo")


def write_data(folder: Path) -> None:
    """The data files of the command lines."""
    rows = [
        {"source": e.source, "target": e.target, "owner": COMMAND_OWNERS[i // 6]}
        for i, e in enumerate(examples(18))
    ]
    for name, part in (("data.jsonl", rows), ("dev.jsonl", rows[:3])):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in part))


def call(words: list[str]) -> int:
    """Run `foreword` in this process; its exit status."""
    from foreword.cli import main

    before = sys.argv
    sys.argv = ["foreword", *words]
    try:
        main()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    finally:
        sys.argv = before
    return 0


def migrate(opening: Callable[[], PrefixStore], place: list[str]) -> None:
    """As the message tells its reader to, where the store is not of today's revision."""
    try:
        opening().close()
    except OutdatedCatalogue as error:
        if "foreword store migrate" not in str(error):
            raise
        words = place[:2] if "--blobs" in place and not takes_blobs() else place
        assert call(["store", "migrate", *words]) == 0


def takes_blobs() -> bool:
    options = all_commands()["store migrate"].params
    return any("--blobs" in option.opts for option in options)
