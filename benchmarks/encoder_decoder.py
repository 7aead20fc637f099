"""Which streams of an encoder-decoder's prefix matter: encoder, cross and decoder, together and alone.

    python -m benchmarks.encoder_decoder --train trainset.csv --dev devset.csv

A small BART and a small T5 (encoder and decoder of different depth) are trained from scratch, all weights,
on two things: verbalising (E2E's attributes to a sentence) and mending lines, attributes or sentences, of
which words were masked. Then they are frozen, and prefixes learn what the base was never shown: the sentence
in, the attributes out. Every set of streams takes the same steps over the same batches, at each learning rate
of the grid; the best by dev loss is given. `decoder, as many numbers` is a longer prefix in the decoder
alone, so that more streams do not win by their size. `--folder` keeps the bases for another run.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from foreword import BaseModel, Example, Prefix, Template, generate
from foreword.batch import encoder_decoder_batch
from foreword.encoding import EncodedExample, encode
from foreword.examples import read_examples
from foreword.geometry import Stream
from foreword.training.loop import dev_loss, train_step
from foreword.training.order import Order
from foreword.training.schedule import rate_factor
from foreword.training.train import build_learner, make_settings

PAD, END, MASK = "<pad>", "</s>", "<mask>"
MASKED_SHARE = 0.3
WARMUP = 0.05
STREAM_SETS: dict[str, tuple[Stream, ...]] = {
    "encoder + cross + decoder": ("encoder", "cross", "decoder"),
    "decoder": ("decoder",),
    "cross": ("cross",),
    "encoder": ("encoder",),
}


def main() -> None:
    arguments = _arguments()
    told, dev_told = (_short(read_examples(path), arguments) for path in (arguments.train, arguments.dev))
    dev_told = _spread(dev_told, arguments.dev_rows)
    task, dev_task = [_reversed(e) for e in told], [_reversed(e) for e in dev_told]
    tables = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary)
        for kind in arguments.models:
            if arguments.more_base_steps or not (folder / kind / "config.json").exists():
                _train_base(kind, folder / kind, told, dev_told, arguments)
            tables.append(_compare(kind, folder / kind, task, dev_task, arguments))
    for table in tables:
        print("\n" + _markdown(table))


# -- the base ------------------------------------------------------------------------------------


def _train_base(
    kind: str, folder: Path, told: list[Example], dev_told: list[Example], arguments: argparse.Namespace
) -> None:
    """Train all weights of a small model, from scratch or on from the folder, and save it there."""
    torch.manual_seed(arguments.seed)
    going_on = (folder / "config.json").exists()
    if going_on:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32)
    else:
        tokenizer = _make_tokenizer(told, arguments.vocabulary)
        model = _make_model(kind, tokenizer, arguments.width)
    template = Template(style="raw", end=END)
    rows, _ = encode(_lessons(told, seed=1), tokenizer, template)
    dev_sets = {name: encode(part, tokenizer, template)[0] for name, part in _dev_lessons(dev_told).items()}
    order = Order(
        [row.tokens for row in rows], arguments.base_batch, arguments.seed + going_on, by_length=True
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.base_rate, weight_decay=0.01, fused=True)
    steps = arguments.more_base_steps if going_on else arguments.base_steps
    begun = time.perf_counter()
    model.train()
    for step in range(steps):
        loss = _loss(model, [rows[i] for i in order.batch(step)])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = arguments.base_rate * rate_factor(step, warmup=round(WARMUP * steps), steps=steps)
        optimizer.step()
        if step % 100 == 0:
            spent = round(time.perf_counter() - begun)
            report(
                what="base step", model=kind, step=step, loss=round(float(loss.detach()), 3), seconds=spent
            )
    model.eval()
    with torch.no_grad():
        dev = {name: round(float(_loss(model, part)), 3) for name, part in dev_sets.items()}
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "dev.json").write_text(json.dumps(dev))
    report(what="base", model=kind, dev_loss=dev, seconds=round(time.perf_counter() - begun))


def _loss(model: Any, rows: Sequence[EncodedExample]) -> torch.Tensor:
    batch = encoder_decoder_batch(
        rows, start_id=model.config.decoder_start_token_id, device=torch.device("cpu")
    )
    logits_MV = model(**batch.inputs, use_cache=False).logits.flatten(0, 1)[batch.place_M]
    return cross_entropy(logits_MV, batch.target_M)


def _make_tokenizer(told: list[Example], size: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, END, MASK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for e in told for text in (e.source, e.target)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, mask_token=MASK, padding_side="right"
    )


def _make_model(kind: str, tokenizer: PreTrainedTokenizerFast, width: int) -> Any:
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    if kind == "bart":
        config = BartConfig(
            vocab_size=len(tokenizer),
            d_model=width,
            encoder_layers=2,
            decoder_layers=3,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=4 * width,
            decoder_ffn_dim=4 * width,
            max_position_embeddings=256,
            dropout=0.0,
            init_std=width**-0.5,  # at BART's own 0.02, so narrow a model takes long to look at its source
            bos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.eos_token_id,
            forced_eos_token_id=None,
            **special,
        )
        return BartForConditionalGeneration(config)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=width // 4,
        d_ff=4 * width,
        num_heads=4,
        num_layers=3,
        num_decoder_layers=2,
        dropout_rate=0.0,
        decoder_start_token_id=tokenizer.pad_token_id,
        **special,
    )
    return T5ForConditionalGeneration(config)


def _lessons(told: list[Example], seed: int) -> list[Example]:
    """What the base learns: half of it verbalising, a quarter each mending sentences and attributes."""
    generator = random.Random(seed)
    lessons = []
    for number, example in enumerate(told):
        lessons.append(example)
        line = example.source if number % 2 else example.target
        lessons.append(Example(_masked(line, generator), line))
    return lessons


def _dev_lessons(dev_told: list[Example]) -> dict[str, list[Example]]:
    generator = random.Random(2)
    return {
        "verbalising": dev_told,
        "mending sentences": [Example(_masked(e.target, generator), e.target) for e in dev_told],
        "mending attributes": [Example(_masked(e.source, generator), e.source) for e in dev_told],
    }


def _masked(line: str, generator: random.Random) -> str:
    return " ".join(MASK if generator.random() < MASKED_SHARE else word for word in line.split(" "))


def _reversed(example: Example) -> Example:
    return Example(example.target, example.source)


def _short(examples: list[Example], arguments: argparse.Namespace) -> list[Example]:
    return [e for e in examples if str(e.source).count(" | ") < arguments.attributes]


def _spread(examples: list[Example], count: int) -> list[Example]:
    """Examples from the whole file: neighbours in it share their attributes."""
    return examples[:: max(1, len(examples) // count)][:count]


# -- the prefixes --------------------------------------------------------------------------------


def _compare(
    kind: str, folder: Path, task: list[Example], dev_task: list[Example], arguments: argparse.Namespace
) -> dict[str, Any]:
    base = BaseModel.load(folder, dtype=torch.float32, device="cpu")
    checksum = base.weights_checksum()
    rows, _ = encode(task, base.tokenizer, base.template)
    dev_rows, _ = encode(dev_task, base.tokenizer, base.template)
    losses = base.token_losses(dev_task)
    without = float(torch.cat(losses).double().mean())
    weights = sum(p.numel() for p in base.model.parameters())
    report(what="no prefix", model=kind, dev_loss=round(without, 4), geometry=str(base.geometry))
    depth = {stream: g.layers for stream, g in base.geometry.streams.items()}
    length = arguments.length
    runs = {name: (streams, length) for name, streams in STREAM_SETS.items()}
    runs["decoder, as many numbers"] = (("decoder",), round(length * sum(depth.values()) / depth["decoder"]))
    found = []
    for name, (streams, own_length) in runs.items():
        tries = [
            _learn(base, kind, name, streams, own_length, rate, rows, dev_rows, arguments)
            for rate in arguments.rates
        ]
        found.append(min(tries, key=lambda each: each["dev_loss"]))
    texts = {name: _texts(base, each["prefix"], dev_task) for name, each in zip(runs, found, strict=True)}
    for name, each in zip(runs, found, strict=True):
        del each["prefix"]
        each["right"] = _right(texts[name], dev_task[: len(texts[name])])
        report(
            what="generated", model=kind, streams=name, attributes_right=each["right"], text=texts[name][0]
        )
    unprefixed = _texts(base, None, dev_task)
    report(what="generated", model=kind, streams="none", source=dev_task[0].source, text=unprefixed[0])
    if base.weights_checksum() != checksum:
        raise SystemExit(f"{kind}: a weight of the frozen base has changed")
    return {
        "model": kind,
        "weights": weights,
        "depth": depth,
        "base_dev": json.loads((folder / "dev.json").read_text()),
        "without": without,
        "without_right": _right(unprefixed, dev_task[: len(unprefixed)]),
        "runs": found,
    }


def _learn(
    base: BaseModel,
    kind: str,
    name: str,
    streams: tuple[Stream, ...],
    length: int,
    rate: float,
    rows: list[EncodedExample],
    dev_rows: list[EncodedExample],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    settings = make_settings(
        length=length,
        streams=streams,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        learning_rate=rate,
        parameterization=arguments.parameterization,
        init=arguments.init,
        seed=arguments.seed,
    )
    begun = time.perf_counter()
    learner = build_learner(base, settings, rows, dev_rows)
    course = {0: round(dev_loss(base, learner), 4)}
    while learner.step < learner.steps:
        train_step(base, [learner])
        if learner.step in (learner.steps // 2, learner.steps):
            course[learner.step] = round(dev_loss(base, learner), 4)
    prefix = Prefix(learner.tensors(), base.identity, base.template)
    result = {
        "model": kind,
        "streams": name,
        "length": length,
        "learning_rate": rate,
        "numbers": prefix.numel(),
        "dev_loss": course[learner.steps],
        "course": course,
    }
    report(what="prefix", **result, seconds=round(time.perf_counter() - begun))
    return {**result, "prefix": prefix}


def _texts(base: BaseModel, prefix: Prefix | None, dev_task: list[Example], count: int = 60) -> list[str]:
    sources = [example.source for example in dev_task[:count]]
    return generate(base, sources, prefix, max_new_tokens=90)


def _right(texts: list[str], examples: list[Example]) -> float:
    """F1 over attributes with their values: what is in the text, and what should be."""
    wanted, got, both = 0, 0, 0
    for text, example in zip(texts, examples, strict=True):
        truth, told = (set(line.strip().split(" | ")) for line in (example.target, text))
        wanted, got, both = wanted + len(truth), got + len(told), both + len(truth & told)
    return round(2 * both / (wanted + got), 3)


def _markdown(table: dict[str, Any]) -> str:
    full = table["runs"][0]["dev_loss"]
    layers = ", ".join(f"{stream} {count}" for stream, count in table["depth"].items())
    lines = [
        f"{table['model']}: {table['weights']:,} weights, layers: {layers}; base's own dev losses: "
        + ", ".join(f"{name} {loss}" for name, loss in table["base_dev"].items()),
        "",
        "| streams | P | numbers | best rate | dev loss | above all three | attributes right (F1) |",
        "|---|---|---|---|---|---|---|",
        f"| none | 0 | 0 | | {table['without']:.3f} | {table['without'] - full:+.3f} "
        f"| {table['without_right']:.2f} |",
    ]
    for run in table["runs"]:
        above = "" if run is table["runs"][0] else f"{run['dev_loss'] - full:+.3f}"
        lines.append(
            f"| {run['streams']} | {run['length']} | {run['numbers']:,} | {run['learning_rate']:g} "
            f"| {run['dev_loss']:.3f} | {above} | {run['right']:.2f} |"
        )
    return "\n".join(lines)


def report(**figures: Any) -> None:
    print(json.dumps(figures, ensure_ascii=False), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", required=True)
    parser.add_argument("--dev", required=True)
    parser.add_argument("--dev-rows", type=int, default=200)
    parser.add_argument("--attributes", type=int, default=5, help="leave out examples of more")
    parser.add_argument("--models", nargs="+", choices=["bart", "t5"], default=["bart", "t5"])
    parser.add_argument("--folder", help="where the trained bases are kept, or are already")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--vocabulary", type=int, default=1000)
    parser.add_argument("--base-steps", type=int, default=2500)
    parser.add_argument("--more-base-steps", type=int, help="train the bases in the folder on, as long")
    parser.add_argument("--base-batch", type=int, default=16)
    parser.add_argument("--base-rate", type=float, default=1e-3)
    parser.add_argument("--length", type=int, default=10)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.05, 0.2])
    parser.add_argument("--parameterization", help="default: the project's")
    parser.add_argument("--init", help="default: the project's")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
