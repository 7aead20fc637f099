"""Tokens per second for many owners in one batch: with their prefixes, without any, and PEFT's way.

    python -m benchmarks.generation --owners 32

PEFT can't give rows of one batch different prefixes, so there each owner's row is generated after its
adapter has been set. All three run in turns; the ratio is that of each round, and its median is given.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from benchmarks import peft_prefix
from foreword import BaseModel, Prefix, generate
from foreword.initialization import activations
from foreword.models import resolve

PROMPTS = [
    "name : The Copper Pot | Type : pub | food : English | price : cheap | area : riverside\n",
    "Write a short reply to a customer whose parcel is late, order 1187.\n",
    "The lighthouse keeper climbed the stairs every evening at six and",
    "Water boils at a lower temperature in the mountains because",
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--owners", type=int, default=32)
    parser.add_argument("--length", type=int, default=10)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--peft-rounds", type=int, default=1, help="PEFT is slow: rounds in which it takes part"
    )
    arguments = parser.parse_args()
    base = BaseModel.load(arguments.base, dtype=torch.float32)
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(arguments.owners)]
    prefixes = [make_prefix(base, arguments.length, seed) for seed in range(arguments.owners)]
    new = arguments.new_tokens
    # Tokens that end a text are banned, so that all ways make the same number of tokens.
    never_end = [base.tokenizer.decode([i]) for i in base.end_ids]
    ways: dict[str, Callable[[], Any]] = {
        "prefixes": lambda: generate(base, prompts, prefixes, raw=True, max_new_tokens=new, banned=never_end),
        "plain": lambda: generate(base, prompts, raw=True, max_new_tokens=new, banned=never_end),
    }
    with tempfile.TemporaryDirectory() as folder:
        if arguments.peft_rounds:
            ways["PEFT"] = _peft(base, prompts, prefixes, new, Path(folder))
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for way in ("prefixes", "plain"):
            ways[way]()  # warm
        for number in range(arguments.rounds):
            for name, run in ways.items():
                if name == "PEFT" and number >= arguments.peft_rounds:
                    continue
                begun = time.perf_counter()
                run()
                rates[name].append(arguments.owners * new / (time.perf_counter() - begun))
            print(json.dumps({name: round(found[-1], 1) for name, found in rates.items()}), flush=True)
    print("\n| way | tokens/s, median | prefixes / this, median of rounds | spread |\n|---|---|---|---|")
    for name, found in rates.items():
        ratios = [a / b for a, b in zip(rates["prefixes"], found, strict=False)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"| {name} | {statistics.median(found):.1f} | {statistics.median(ratios):.2f} | {spread} |")


def make_prefix(base: BaseModel, length: int, seed: int) -> Prefix:
    """Real keys and values of random tokens."""
    ids = torch.randint(1000, 20000, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    key, value = activations(base, ids, ids, length)["decoder"]
    return Prefix({"decoder.key": key, "decoder.value": value}, base.identity)


def _peft(
    base: BaseModel, prompts: list[str], prefixes: list[Prefix], new: int, folder: Path
) -> Callable[[], None]:
    """Adapters with the same keys and values, one generate call for each owner."""
    fresh = peft_prefix.load(str(resolve(base.name).path), length=prefixes[0].length, projection=False)
    paths = []
    for number, prefix in enumerate(prefixes):
        states_PL2HD = torch.stack([prefix.key(), prefix.value()], dim=1).permute(3, 0, 1, 2, 4)
        with torch.no_grad():
            fresh.prompt_encoder["default"].embedding.weight.copy_(states_PL2HD.flatten(1))
        paths.append(folder / str(number))
        fresh.save_pretrained(paths[-1])
    model = PeftModel.from_pretrained(fresh.get_base_model(), paths[0], adapter_name="0")
    for number, path in enumerate(paths[1:], 1):
        model.load_adapter(path, adapter_name=str(number))
    model.eval()
    inputs = [base.tokenizer(prompt, return_tensors="pt") for prompt in prompts]

    @torch.no_grad()
    def run() -> None:
        for number, encoded in enumerate(inputs):
            model.set_adapter(str(number))
            model.generate(**encoded, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)

    return run


if __name__ == "__main__":
    main()
