"""What packed weights gain on a CPU: the same work with and without, in turns in one run.

    python -m benchmarks.packing

New tokens of 1, 8 and 32 rows. The ratio is that of each round, and its median is given; so is the memory of
the copies.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from foreword import BaseModel, generate, generation
from foreword.base import prepacked_linear
from foreword.research.bench.generation import PROMPTS, make_prefix


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--new-tokens", type=int, default=24)
    given = parser.parse_args()
    generation.prepacking_pays = lambda rows: True  # on this machine, too: that is the question
    packed = BaseModel.load(given.base, dtype=torch.float32)
    prepacked_linear.MOST_BYTES = 0
    plain = BaseModel.load(given.base, dtype=torch.float32)
    layers = [m for m in packed.model.modules() if isinstance(m, prepacked_linear.PrepackedLinear)]
    copy = sum(layer.weight.nbytes for layer in layers)
    print(
        json.dumps(
            {"packed layers": len(layers), "bytes of a copy": copy, "threads": torch.get_num_threads()}
        )
    )
    works = {f"generation, {rows} rows": _generation(given, rows) for rows in (1, 8, 32)}
    print("\n| work | with, seconds | without, seconds | without / with, median of rounds | spread |")
    print("|---|---|---|---|---|")
    for what, work in works.items():
        runs = [work(base) for base in (packed, plain)]
        for run in runs:
            run()  # warm
        taken: list[list[float]] = [[], []]
        for _ in range(given.rounds):
            for run, times in zip(runs, taken, strict=True):
                start_time = time.perf_counter()
                run()
                times.append(time.perf_counter() - start_time)
        ratios = [without / with_ for with_, without in zip(*taken, strict=True)]
        medians = " | ".join(f"{statistics.median(times):.3f}" for times in taken)
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"| {what} | {medians} | {statistics.median(ratios):.2f} | {spread} |", flush=True)


def _generation(given: argparse.Namespace, rows: int) -> Callable[[BaseModel], Callable[[], Any]]:
    def work(base: BaseModel) -> Callable[[], Any]:
        prompts = [PROMPTS[number % len(PROMPTS)] for number in range(rows)]
        prefixes = [make_prefix(base, 10, number) for number in range(rows)]
        never_end = [base.tokenizer.decode([i]) for i in base.end_ids]
        return lambda: generate(
            base, prompts, prefixes, raw=True, max_new_tokens=given.new_tokens, banned=never_end
        )

    return work


if __name__ == "__main__":
    main()
