"""Dev loss of several recipes on one data set: how the defaults of training were chosen.

    python -m benchmarks.recipe --train trainset.csv --dev devset.csv \
        --try parameterization=direct,learning_rate=0.1 --try "parameterization=mlp+start,init=words:Answer."

Each `--try` is a list of options of `train`, and `width`, of the network's hidden layer. bfloat16 where the
CPU has it in hardware is enough to tell recipes apart, and three times as fast.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from foreword import BaseModel
from foreword.encoding import encode
from foreword.examples import read_examples
from foreword.training.loop import mean_loss, train_step
from foreword.training.settings import ParameterizationSettings, make_settings
from foreword.training.trainer import build_trainer

NUMBERS = {
    "learning_rate": float,
    "warmup": float,
    "clip": float,
    "seed": int,
    "length": int,
    "steps": int,
    "batch_size": int,
    "width": int,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", required=True)
    parser.add_argument("--dev", required=True)
    parser.add_argument("--train-rows", type=int)
    parser.add_argument("--dev-rows", type=int, default=60)
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--length", type=int, default=10)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=384)
    parser.add_argument("--try", dest="recipes", action="append", required=True, metavar="NAME=VALUE,...")
    arguments = parser.parse_args()
    base = BaseModel.load(arguments.base, dtype=arguments.dtype)
    limit = arguments.max_length
    examples = read_examples(arguments.train, limit=arguments.train_rows)
    train_rows, _ = encode(examples, base.tokenizer, base.template, limit)
    dev_rows, _ = encode(
        read_examples(arguments.dev, limit=arguments.dev_rows), base.tokenizer, base.template, limit
    )
    fixed = {"length": arguments.length, "steps": arguments.steps, "batch_size": arguments.batch_size}
    for recipe in arguments.recipes:
        start_time = time.perf_counter()
        settings = make_settings(**{**fixed, **_options(recipe)})
        trainer = build_trainer(base, settings, train_rows, dev_rows)
        run_log = {0: mean_loss(base, trainer.trained, trainer.dev)}
        while trainer.step < trainer.steps:
            train_step(base, [trainer])
            if trainer.step in (trainer.steps // 2, trainer.steps):
                run_log[trainer.step] = round(mean_loss(base, trainer.trained, trainer.dev), 4)
        seconds = round(time.perf_counter() - start_time)
        print(json.dumps({"recipe": recipe, "dev_loss": run_log, "seconds": seconds}), flush=True)


def _options(recipe: str) -> dict[str, Any]:
    pairs = [part.split("=", 1) for part in recipe.split(",") if part]
    options = {name: NUMBERS.get(name, str)(value) for name, value in pairs}
    if "width" in options:  # it belongs to the parameterization, not to the settings of training
        kind, width = options.pop("parameterization", "mlp"), options.pop("width")
        options["parameterization"] = ParameterizationSettings(kind=kind, width=width)
    return options


if __name__ == "__main__":
    main()
