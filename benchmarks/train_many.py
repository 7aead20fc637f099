"""Many owners in one run against one run after another: time, dev losses, peak memory.

    python -m benchmarks.train_many time --train train.jsonl --dev dev.jsonl
    python -m benchmarks.train_many memory --train train.jsonl

JSONL with user, source, target. Both ways take the same steps over the same rows of every owner, and are
run in turns; the ratio is that of each round, and its median is given. The dev losses of the two ways are
compared owner by owner. Memory is the peak above the loaded base model, each way in a process of its own: all
owners together, and one owner with as many rows in one step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from foreword import BaseModel, Example, Prefix, train, train_many
from foreword.examples import read_examples
from foreword.research.bench.memory import above_the_base

FIELDS = {"owner": "user"}
ByOwner = Mapping[str, Sequence[Example]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("time", "memory"))
    parser.add_argument("--train", required=True)
    parser.add_argument("--dev", help="of the owners; their losses are compared")
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--owners", type=int, help="the first so many; default: all")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8], help="per owner and step")
    parser.add_argument("--examples", type=int, default=32, help="of each owner")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=128, help="tokens of a mail and its subject")
    parser.add_argument("--dev-rows", type=int, default=4, help="of each owner")
    parser.add_argument("--way", choices=("together", "single"), help="measure this one's memory here")
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(_memory(arguments)))
    elif arguments.what == "memory":
        _compare_memory(arguments)
    else:
        _compare_time(arguments)


def _by_owner(path: str, owners: int | None, rows: int | None = None) -> dict[str, list[Example]]:
    found: dict[str, list[Example]] = {}
    for example in read_examples(path, fields=FIELDS):
        found.setdefault(str(example.owner), []).append(example)
    return {owner: own[:rows] for owner, own in list(found.items())[:owners]}


# -- time ----------------------------------------------------------------------------------------


def _compare_time(arguments: argparse.Namespace) -> None:
    base = BaseModel.load(arguments.base, dtype=torch.float32)
    by_owner = _by_owner(arguments.train, arguments.owners, arguments.examples)
    dev = _by_owner(arguments.dev, None) if arguments.dev else {}
    lines = ["| rows | one run / single runs, median | spread | dev losses apart |", "|---|---|---|---|"]
    for rows in arguments.rows:
        settings = {
            "steps": arguments.steps,
            "batch_size": rows,
            "max_length": arguments.max_length,
            "template": base.template,
        }
        seconds: dict[str, list[float]] = {"together": [], "single": []}
        for _ in range(arguments.rounds):
            start_time = time.perf_counter()
            together = train_many(base, by_owner, **settings)
            between = time.perf_counter()
            single = {owner: train(base, own, **settings) for owner, own in by_owner.items()}
            seconds["together"].append(between - start_time)
            seconds["single"].append(time.perf_counter() - between)
            report(rows=rows, **{way: round(found[-1], 1) for way, found in seconds.items()})
        ratios = [a / b for a, b in zip(seconds["together"], seconds["single"], strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        apart = f"{_apart(base, together, single, dev, arguments):.1e}" if dev else "not measured"
        lines.append(f"| {rows} | {statistics.median(ratios):.2f} | {spread} | {apart} |")
    print("\n".join(lines))


def _apart(
    base: BaseModel,
    together: Mapping[str, Prefix],
    single: Mapping[str, Prefix],
    dev: ByOwner,
    arguments: argparse.Namespace,
) -> float:
    """The largest relative difference of an owner's dev loss between the two ways."""
    found = []
    for owner, one in together.items():
        short = [e for e in dev.get(owner, ()) if len(str(e.source)) < 2 * arguments.max_length]
        if rows := short[: arguments.dev_rows]:
            mine, theirs = (float(torch.cat(base.token_losses(rows, p)).mean()) for p in (one, single[owner]))
            found.append(abs(mine - theirs) / theirs)
    return max(found)


# -- memory --------------------------------------------------------------------------------------


def _compare_memory(arguments: argparse.Namespace) -> None:
    print("| rows per owner | all together (MB) | one owner, as many rows (MB) | ratio |\n|---|---|---|---|")
    for rows in arguments.rows:
        found = {}
        for way in ("together", "single"):
            given = [*sys.argv[1:], "--way", way, "--rows", str(rows)]
            command = [sys.executable, "-m", "benchmarks.train_many", *given]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[way] = json.loads(done.stdout.splitlines()[-1])["megabytes"]
        together, single = found["together"], found["single"]
        print(f"| {rows} | {together:.0f} | {single:.0f} | {together / single:.2f} |", flush=True)


def _memory(arguments: argparse.Namespace) -> dict[str, float]:
    base = BaseModel.load(arguments.base, dtype=torch.float32)
    by_owner = _by_owner(arguments.train, arguments.owners)
    (rows,) = arguments.rows
    settings: dict[str, Any] = {
        "steps": arguments.steps,
        "max_length": arguments.max_length,
        "template": base.template,
    }
    pooled = [example for own in by_owner.values() for example in own[:rows]]
    if arguments.way == "together":
        owners, batch_size = {owner: own[:rows] for owner, own in by_owner.items()}, rows
    else:
        owners, batch_size = {"one": pooled}, len(pooled)

    def run(_: int) -> None:
        train_many(base, owners, batch_size=batch_size, **settings)

    return {"megabytes": above_the_base(base.model, run, steps=1) / 2**20}


def report(**figures: Any) -> None:
    print(json.dumps(figures), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
