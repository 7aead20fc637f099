"""This checkout against another one, on the same work in turns: whether a change made it slower.

    git worktree add ../before HEAD~1
    python -m benchmarks.against --checkout ../before

Each checkout works in a process of its own, with one thread, on the same examples and prompts; while one
works the other waits. A round is one piece of each work in both, and who begins changes from round to round.
Work is a training step of `step-N` examples, or new tokens of `generate-N` rows with a prefix each. The ratio
is that of each round: the other's seconds over this one's, so that above 1 this checkout is faster. Ends with
status 1 where a median is below `--least`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
WARMING = -1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkout", type=Path, required=True, help="folder of the other checkout")
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--work", default="step-8,step-16,generate-8,generate-32", help="what is timed")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--length", type=int, default=10, help="virtual tokens")
    parser.add_argument("--new-tokens", type=int, default=32, help="of each row that is generated")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--least", type=float, default=0.97, help="ratio below which it is slower")
    given = parser.parse_args(arguments)
    works = given.work.split(",")
    workers = {"this": _Worker(HERE, given), "other": _Worker(given.checkout.resolve(), given)}
    seconds: dict[tuple[str, str], list[float]] = {(who, work): [] for who in workers for work in works}
    try:
        for number in range(WARMING, given.rounds):
            for work in works:
                for who in sorted(workers, reverse=number % 2 == 0):
                    taken = workers[who].do(work, number)
                    if number > WARMING:
                        seconds[who, work].append(taken)
            print(f"round {number + 1} of {given.rounds}", file=sys.stderr, flush=True)
    finally:
        for worker in workers.values():
            worker.end()
    print("| work | this, seconds | other, seconds | other / this, median of rounds | quartiles |")
    print("|---|---|---|---|---|")
    slower = 0
    for work in works:
        ratio, low, high, row = compared(seconds["this", work], seconds["other", work])
        slower += ratio < given.least
        print(f"| {work} | {row} | {ratio:.3f} | {low:.3f} to {high:.3f} |", flush=True)
    return int(slower > 0)


def compared(this: Sequence[float], other: Sequence[float]) -> tuple[float, float, float, str]:
    """Median and quartiles of the rounds' ratios, and both medians of seconds as cells of the table."""
    ratios = [theirs / ours for ours, theirs in zip(this, other, strict=True)]
    low, middle, high = statistics.quantiles(ratios * (1 + (len(ratios) == 1)), n=4, method="inclusive")
    return middle, low, high, f"{statistics.median(this):.3f} | {statistics.median(other):.3f}"


class _Worker:
    """The process of one checkout."""

    def __init__(self, checkout: Path, given: argparse.Namespace) -> None:
        if not (checkout / "src" / "foreword" / "__init__.py").is_file():
            raise SystemExit(f"{checkout} is no checkout: there is no src/foreword in it")
        threads = str(given.threads)
        paths = {"PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        said = {"base": given.base, "length": given.length, "new_tokens": given.new_tokens}
        said |= {"threads": given.threads, "source": str(checkout / "src"), "rounds": given.rounds}
        self._process = subprocess.Popen(
            # -P: not the folder of this file, whose modules have the names of others.
            [sys.executable, "-P", __file__, "--worker", json.dumps(said)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **paths},
        )

    def do(self, work: str, number: int) -> float:
        """Do a piece of work; its seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{work} {number}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # what it wrote to its standard error says why
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of one checkout ended with status {self._process.wait()}")
        return float(line)

    def end(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def work_here(said: dict[str, Any]) -> None:
    """Do what standard input says, a piece of work a line, and say how many seconds each took."""
    import torch

    import foreword
    from foreword import BaseModel

    if not Path(foreword.__file__).is_relative_to(said["source"]):
        raise SystemExit(f"foreword comes from {foreword.__file__}, not from {said['source']}")
    torch.set_num_threads(said["threads"])
    base = BaseModel.load(said["base"], device="cpu", dtype="float32")
    works: dict[str, Callable[[int], object]] = {}
    for line in sys.stdin:
        name, number = line.split()
        if name not in works:
            kind, _, rows = name.partition("-")
            works[name] = {"step": _step, "generate": _generate}[kind](base, int(rows), said)
        start_time = time.perf_counter()
        works[name](int(number))
        print(time.perf_counter() - start_time, flush=True)


def _step(base: Any, rows: int, said: dict[str, Any]) -> Callable[[int], object]:
    from foreword.encoding import encode
    from foreword.research.bench import workload
    from foreword.research.bench.train_step import batch_at, step_of
    from foreword.training.settings import make_settings
    from foreword.training.trainer import build_trainer

    encoded, _ = encode(workload.examples(None, rows * (said["rounds"] + 1)), base.tokenizer, base.template)
    settings = make_settings(length=said["length"], steps=1_000_000, batch_size=rows)
    trainer = build_trainer(base, settings, encoded, [])
    step = step_of(base, [trainer])

    def work(number: int) -> None:
        batch_at(trainer, number + 1)
        step(number)

    return work


def _generate(base: Any, rows: int, said: dict[str, Any]) -> Callable[[int], object]:
    from foreword.research.bench.generation import batch_of, prompts_of

    sizes = {"length": said["length"], "new_tokens": said["new_tokens"], "distinct": rows}
    return batch_of(base, prompts_of(rows), **sizes)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work_here(json.loads(sys.argv[2]))
    else:
        sys.exit(main())
