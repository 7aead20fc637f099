"""Dev loss after the same steps on the same examples: Foreword's defaults against PEFT's prefix tuning.

    python -m benchmarks.training_quality --train trainset.csv --dev devset.csv

PEFT runs in its default form and with prefix_projection, each at both learning rates of the grid; all
runs see the same batches in the same order, with the same warm-up, decay and clipping.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch

from foreword import BaseModel
from foreword.bench import peft_peer
from foreword.encoding import EncodedExample, encode
from foreword.examples import read_examples
from foreword.training.loop import dev_loss, train_step
from foreword.training.order import Order
from foreword.training.train import build_learner, make_settings

PEFT_RATES = (1e-3, 1e-2)


def main() -> None:
    arguments = _arguments()
    base = BaseModel.load(arguments.base, dtype=torch.float32)
    limit = arguments.max_length
    train_rows, _ = encode(read_examples(arguments.train), base.tokenizer, base.template, limit)
    dev_rows, _ = encode(
        read_examples(arguments.dev, limit=arguments.dev_rows), base.tokenizer, base.template, limit
    )
    results = [_foreword(base, train_rows, dev_rows, arguments)]
    print(json.dumps(results[-1]), flush=True)
    if not arguments.skip_peft:
        for projection in (False, True):
            for rate in PEFT_RATES:
                results.append(_peft(base, train_rows, dev_rows, arguments, projection, rate))
                print(json.dumps(results[-1]), flush=True)
    print("\n| method | learning rate | dev loss | at steps |\n|---|---|---|---|")
    for result in results:
        course = ", ".join(f"{step}: {loss:.3f}" for step, loss in result["course"].items())
        print(f"| {result['method']} | {result['learning_rate']:g} | {result['dev_loss']:.4f} | {course} |")


def _foreword(
    base: BaseModel,
    train_rows: list[EncodedExample],
    dev_rows: list[EncodedExample],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    settings = make_settings(
        length=arguments.length,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        learning_rate=arguments.learning_rate,
        parameterization=arguments.parameterization,
        init=arguments.init,
    )
    begun = time.perf_counter()
    learner = build_learner(base, settings, train_rows, dev_rows)
    course = {}
    while learner.step < learner.steps:
        train_step(base, [learner])
        if learner.step in arguments.at or learner.step == learner.steps:
            course[learner.step] = dev_loss(base, learner)
    name = f"Foreword {settings.parameterization}, {settings.init}"
    return _result(name, settings.learning_rate, course, begun)


def _peft(
    base: BaseModel,
    train_rows: list[EncodedExample],
    dev_rows: list[EncodedExample],
    arguments: argparse.Namespace,
    projection: bool,
    rate: float,
) -> dict[str, Any]:
    begun = time.perf_counter()
    model = peft_peer.load(
        arguments.folder, length=arguments.length, projection=projection, seed=arguments.seed
    )
    warmup = make_settings().warmup_steps(arguments.steps)
    step = peft_peer.trainer(model, learning_rate=rate, warmup=warmup, steps=arguments.steps)
    order = Order([r.tokens for r in train_rows], arguments.batch_size, arguments.seed, by_length=False)
    course = {}
    for number in range(1, arguments.steps + 1):
        step([train_rows[index] for index in order.batch(number - 1)])
        if number in arguments.at or number == arguments.steps:
            course[number] = peft_peer.dev_loss(model, dev_rows)
    return _result(f"PEFT {'prefix_projection' if projection else 'default'}", rate, course, begun)


def _result(method: str, rate: float, course: dict[int, float], begun: float) -> dict[str, Any]:
    last = course[max(course)]
    seconds = round(time.perf_counter() - begun, 1)
    return {"method": method, "learning_rate": rate, "dev_loss": last, "course": course, "seconds": seconds}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", required=True)
    parser.add_argument("--dev", required=True)
    parser.add_argument("--dev-rows", type=int, default=200)
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--length", type=int, default=10)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--at", type=int, nargs="*", default=[15, 30], help="steps after which to measure, too"
    )
    parser.add_argument("--skip-peft", action="store_true")
    parser.add_argument("--learning-rate", type=float, help="Foreword's; default: the project's")
    parser.add_argument("--parameterization", help="Foreword's; default: the project's")
    parser.add_argument("--init", help="Foreword's; default: the project's")
    arguments = parser.parse_args()
    from foreword.models import resolve

    arguments.folder = str(resolve(arguments.base).path)
    return arguments


if __name__ == "__main__":
    main()
