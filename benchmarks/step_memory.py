"""Peak memory of one training step above the loaded base model: Foreword and PEFT, each in a process.

python -m benchmarks.step_memory --train trainset.csv
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import torch

from benchmarks.peak_memory import peak, reset_peak
from foreword import BaseModel
from foreword.encoding import encode
from foreword.examples import read_examples
from foreword.training.loop import train_step
from foreword.training.order import Order
from foreword.training.train import build_learner, make_settings

WAYS = ("foreword", "foreword-checkpointing", "peft", "peft-projection")
STEPS = 4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", required=True)
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--length", type=int, default=10)
    parser.add_argument("--way", choices=WAYS, help="measure this one here, and print a number")
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(_measure(arguments)))
        return
    print("| way | peak above the loaded model (MB) |\n|---|---|")
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.step_memory", *sys.argv[1:], "--way", way]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        print(f"| {way} | {json.loads(done.stdout)['megabytes']:.0f} |", flush=True)


def _measure(arguments: argparse.Namespace) -> dict[str, float]:
    base = BaseModel.load(arguments.base, dtype=torch.float32)
    examples = read_examples(arguments.train, limit=STEPS * arguments.batch_size)
    rows, _ = encode(examples, base.tokenizer, base.template)
    if arguments.way.startswith("peft"):
        from benchmarks import peft_prefix
        from foreword.models import resolve

        del base
        projection = arguments.way == "peft-projection"
        model = peft_prefix.load(
            str(resolve(arguments.base).path), length=arguments.length, projection=projection
        )
        step = peft_prefix.trainer(model, learning_rate=1e-3, warmup=0, steps=STEPS)
        before = reset_peak()
        order = Order([row.tokens for row in rows], arguments.batch_size, 0, by_length=False)
        for number in range(STEPS):
            step([rows[index] for index in order.batch(number)])
    else:
        checkpointing = arguments.way == "foreword-checkpointing"
        settings = make_settings(
            length=arguments.length,
            batch_size=arguments.batch_size,
            steps=STEPS,
            gradient_checkpointing=checkpointing,
        )
        learner = build_learner(base, settings, rows, [])
        before = reset_peak()
        for _ in range(STEPS):
            train_step(base, [learner])
    return {"megabytes": (peak() - before) / 1024}


if __name__ == "__main__":
    main()
