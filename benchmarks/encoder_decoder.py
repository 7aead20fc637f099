"""Which streams of an encoder-decoder's prefix matter: encoder, cross and decoder, together and alone.

    python -m benchmarks.encoder_decoder --train trainset.csv --dev devset.csv --folder bases

A small BART and a small T5 (encoder and decoder of different depth) are trained from scratch
(`encoder_decoder_base.py`) on writing sentences from attributes and on mending both. Then they are frozen,
and prefixes learn what the base was never shown: the sentence in, the attributes out. Every set of streams
takes the same steps over the same batches, with each seed and at each learning rate; the rate with the lowest
mean dev loss counts, and is named where it ends the grid, for the next might be better. `decoder, as many
numbers` is a longer prefix in the decoder alone, so that more streams do not win by their size. `--folder`
keeps the bases for another run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.encoder_decoder_base import RECIPES, report, train_base
from foreword import BaseModel, Example, Prefix, generate
from foreword.encoding import EncodedExample, encode
from foreword.examples import read_examples
from foreword.prefix import Stream
from foreword.training.loop import mean_loss, train_step
from foreword.training.settings import make_settings
from foreword.training.trainer import build_trainer

RATES = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8]
STREAM_SETS: dict[str, tuple[Stream, ...]] = {
    "encoder + cross + decoder": ("encoder", "cross", "decoder"),
    "decoder": ("decoder",),
    "cross": ("cross",),
    "encoder": ("encoder",),
}


def main() -> None:
    arguments = _arguments()
    examples, dev_examples = (
        _short(read_examples(path), arguments.attributes) for path in (arguments.train, arguments.dev)
    )
    dev_examples = _spread(dev_examples, arguments.dev_rows)
    task, dev_task = [_reversed(e) for e in examples], [_reversed(e) for e in dev_examples]
    tables = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary)
        for kind in arguments.models:
            if not (folder / kind / "base.json").exists():
                train_base(kind, folder / kind, examples, dev_examples, arguments.base_steps)
            tables.append(_compare(kind, folder / kind, task, dev_task, arguments))
    for table in tables:
        print("\n" + _markdown(table))


def _reversed(example: Example) -> Example:
    return Example(example.target, example.source)


def _short(examples: list[Example], attributes: int) -> list[Example]:
    return [e for e in examples if str(e.source).count(" | ") < attributes]


def _spread(examples: list[Example], count: int) -> list[Example]:
    """Examples from the whole file: neighbours in it share their attributes."""
    return examples[:: max(1, len(examples) // count)][:count]


def _compare(
    kind: str, folder: Path, task: list[Example], dev_task: list[Example], arguments: argparse.Namespace
) -> dict[str, Any]:
    base = BaseModel.load(folder, dtype=torch.float32, device="cpu")
    checksum = base.weights_checksum()
    rows, _ = encode(task, base.tokenizer, base.template)
    dev_rows, _ = encode(dev_task, base.tokenizer, base.template)
    without = float(torch.cat(base.token_losses(dev_task)).double().mean())
    report(what="no prefix", model=kind, dev_loss=round(without, 4), geometry=str(base.geometry))
    depth = {stream: g.layers for stream, g in base.geometry.streams.items()}
    length = arguments.length
    sets = {name: (streams, length) for name, streams in STREAM_SETS.items()}
    sets["decoder, as many numbers"] = (("decoder",), round(length * sum(depth.values()) / depth["decoder"]))
    runs = []
    for name, (streams, own_length) in sets.items():
        tries = {
            rate: [
                _learn(base, name, streams, own_length, rate, seed, rows, dev_rows, arguments)
                for seed in arguments.seeds
            ]
            for rate in arguments.rates
        }
        means = {rate: statistics.mean(loss for loss, _ in found) for rate, found in tries.items()}
        rate = min(means, key=means.__getitem__)
        texts = [_texts(base, prefix, dev_task) for _, prefix in tries[rate]]
        runs.append(
            {
                "streams": name,
                "length": own_length,
                "numbers": tries[rate][0][1].numel(),
                "rate": rate,
                "means": means,
                "losses": [loss for loss, _ in tries[rate]],
                "right": [_right(each, dev_task[: len(each)]) for each in texts],
            }
        )
        report(model=kind, **runs[-1], text=texts[0][0])
    unprefixed = _texts(base, None, dev_task)
    report(what="generated", model=kind, streams="none", source=dev_task[0].source, text=unprefixed[0])
    if base.weights_checksum() != checksum:
        raise SystemExit(f"{kind}: a weight of the frozen base has changed")
    return {
        "model": kind,
        "weights": sum(p.numel() for p in base.model.parameters()),
        "depth": depth,
        "base": json.loads((folder / "base.json").read_text()),
        "without": without,
        "without_right": _right(unprefixed, dev_task[: len(unprefixed)]),
        "runs": runs,
    }


def _learn(
    base: BaseModel,
    name: str,
    streams: tuple[Stream, ...],
    length: int,
    rate: float,
    seed: int,
    rows: list[EncodedExample],
    dev_rows: list[EncodedExample],
    arguments: argparse.Namespace,
) -> tuple[float, Prefix]:
    """Dev loss at the end, and the prefix."""
    settings = make_settings(
        length=length,
        streams=streams,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        learning_rate=rate,
        seed=seed,
    )
    start_time = time.perf_counter()
    trainer = build_trainer(base, settings, rows, dev_rows)
    before = mean_loss(base, trainer.trained, trainer.dev)
    while trainer.step < trainer.steps:
        train_step(base, [trainer])
    loss = mean_loss(base, trainer.trained, trainer.dev)
    report(
        what="prefix",
        streams=name,
        rate=rate,
        seed=seed,
        dev_loss=[round(before, 4), round(loss, 4)],
        seconds=round(time.perf_counter() - start_time),
    )
    return loss, Prefix(trainer.trained.tensors(), base.identity, base.template)


def _texts(base: BaseModel, prefix: Prefix | None, dev_task: list[Example], count: int = 60) -> list[str]:
    sources = [example.source for example in dev_task[:count]]
    return generate(base, sources, prefix, max_new_tokens=90)


def _right(texts: list[str], examples: list[Example]) -> float:
    """F1 over attributes with their values: what is in the text, and what should be."""
    wanted, got, both = 0, 0, 0
    for text, example in zip(texts, examples, strict=True):
        expected, written = (set(line.strip().split(" | ")) for line in (example.target, text))
        wanted, got, both = wanted + len(expected), got + len(written), both + len(expected & written)
    return round(2 * both / (wanted + got), 3)


def _markdown(table: dict[str, Any]) -> str:
    runs, base = table["runs"], table["base"]
    full = runs[0]["losses"]
    layers = ", ".join(f"{stream} {count}" for stream, count in table["depth"].items())
    rates = list(runs[0]["means"])
    lines = [
        f"{table['model']}: {table['weights']:,} weights, layers: {layers}; {base['steps']} steps in "
        f"{base['seconds']} s; its own dev losses: "
        + ", ".join(f"{name} {loss}" for name, loss in base["dev"].items()),
        "",
        "| streams | P | numbers | "
        + " | ".join(f"{rate:g}" for rate in rates)
        + " | dev loss | above all three (by seed) | F1 |",
        "|---" * (6 + len(rates)) + "|",
        "| none | 0 | 0 |"
        + " |" * len(rates)
        + f" {table['without']:.3f} | {table['without'] - statistics.mean(full):+.3f} "
        f"| {table['without_right']:.2f} |",
    ]
    for run in runs:
        apart = [loss - best for loss, best in zip(run["losses"], full, strict=True)]
        above = f"{statistics.mean(apart):+.3f} ({', '.join(f'{gap:+.3f}' for gap in apart)})"
        means = (
            f"**{mean:.3f}**" if at == run["rate"] else f"{mean:.3f}" for at, mean in run["means"].items()
        )
        lines.append(
            f"| {run['streams']} | {run['length']} | {run['numbers']:,} | "
            + " | ".join(means)
            + f" | {_spread_of(run['losses'], 3)} | {'' if run is runs[0] else above} "
            f"| {_spread_of(run['right'], 2)} |"
        )
    ends = [run["streams"] for run in runs if run["rate"] in (min(rates), max(rates))]
    return "\n".join([*lines, "", f"Best at an end of the grid: {'; '.join(ends) or 'none'}."])


def _spread_of(values: list[float], digits: int) -> str:
    """Mean and standard deviation over the seeds; of one seed its value."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", required=True)
    parser.add_argument("--dev", required=True)
    parser.add_argument("--dev-rows", type=int, default=200)
    parser.add_argument("--attributes", type=int, default=5, help="leave out examples of more")
    parser.add_argument("--models", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--folder", help="where the trained bases are kept, or are already")
    parser.add_argument("--base-steps", type=int, help="instead of the recipe's")
    parser.add_argument("--length", type=int, default=10)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return parser.parse_args()


if __name__ == "__main__":
    main()
