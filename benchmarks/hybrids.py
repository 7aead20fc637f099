"""Does a prefix learn in a hybrid, where it enters some layers only? Beside a model of attention alone.

    python -m benchmarks.hybrids

Small models, each with about as many weights as the others, are trained from scratch on an invented language:
facts about a person, and a sentence that tells them in one of 96 styles (order of the facts, opening, words,
ending), drawn anew for every sentence and written nowhere in the source. So the base knows the styles and can
only guess which one is meant. Then it is frozen, and prefixes learn styles, one each, that the base never saw
in this combination. Measured on persons that no training had: nats of a whole sentence, and how many greedy
sentences are right to the last word. "start" is a prefix before its training.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from foreword import BaseModel, Example, Prefix, generate, train
from foreword.base.batch import decoder_batch
from foreword.encoding import EncodedExample, encode
from foreword.template import Template
from foreword.training.trainer import rate_factor

FACTS = {
    "name": "Ada Ben Cleo Dan Eva Finn Gus Hana Ivo Jana Kim Lars Mia Nils Olga Pia Quin Rosa Sven Tara",
    "town": "Rome Oslo Bern Lyon Graz Kiev Riga Bonn Pisa Turku Porto Delft",
    "trade": "baker tailor sailor potter miller joiner weaver glazier cooper tanner",
    "age": "twenty thirty forty fifty sixty seventy",
}

ORDERS = list(itertools.permutations(range(3), 3))[:4]
OPENINGS = ("", "listen well :", "it is told that", "dear friend ,")
WORDS = (("lives in", "works as", "is aged"), ("dwells in", "earns bread as", "counts years of"))
ENDINGS = (".", "!", "and that is all .")
STYLES = [
    (order, opening, words, ending)
    for order, opening, words, ending in itertools.product(ORDERS, OPENINGS, WORDS, ENDINGS)
]
HELD_OUT = (5, 38, 67, 90)
"""Styles that no base is trained on."""

RATE = 1e-3
"""Of the bases. At 3e-3 the model of attention alone learns the language more slowly."""

PAD, END = "<pad>", "</s>"
TEMPLATE = Template(style="raw", end=END)

SHARED: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("attention in 4 of 4 layers", {}),
    "lfm2": (
        "attention in 2 of 4, short convolutions",
        {"layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False},
    ),
    "qwen3_5_text": ("attention in 2 of 4, gated delta rule", LINEAR),
    "granitemoehybrid": (
        "attention in 2 of 4, Mamba 2",
        {
            "layer_types": ["mamba", "attention"] * 2,
            "num_local_experts": 0,
            "attention_multiplier": 0.25,  # one over the square root of the head size, as elsewhere
            "shared_intermediate_size": 160,
            "mamba_n_heads": 4,
            "mamba_d_head": 32,
            "mamba_d_state": 16,
            "mamba_n_groups": 1,
            "mamba_chunk_size": 16,
        },
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--base-steps", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=150, help="of a prefix")
    parser.add_argument("--length", type=int, default=10)
    parser.add_argument("--styles", type=int, default=len(HELD_OUT), choices=range(1, len(HELD_OUT) + 1))
    arguments = parser.parse_args()
    results = [measure(kind, arguments) for kind in arguments.models]
    print("\n" + _markdown(results))


def measure(kind: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train a base, then a prefix for each style, and report dev loss and right sentences."""
    base, base_seconds = train_base(kind, arguments.base_steps)
    seen = [style for number, style in enumerate(STYLES) if number not in HELD_OUT]
    known = _examples(200, seed=3, styles=seen, dev=True)
    rows = []
    for number in HELD_OUT[: arguments.styles]:
        examples = _examples(200, seed=number, styles=[STYLES[number]], dev=False)
        dev = _examples(100, seed=1000 + number, styles=[STYLES[number]], dev=True)
        start_time = time.perf_counter()
        prefix = train(
            base,
            examples,
            dev=dev,
            length=arguments.length,
            steps=arguments.steps,
            batch_size=8,
            template=TEMPLATE,
        )
        seconds = time.perf_counter() - start_time
        started = train(
            base, examples, length=arguments.length, steps=1, learning_rate=1e-9, template=TEMPLATE
        )
        row: dict[str, Any] = {"style": number, "seconds": round(seconds, 1)}
        for name, way in {"without": None, "start": started, "prefix": prefix}.items():
            row[f"{name}_nats"] = round(_nats(base, dev, way), 3)
        row["without_right"], row["prefix_right"] = (_right(base, dev, way) for way in (None, prefix))
        report(what="style", model=kind, **row)
        rows.append(row)
    summary: dict[str, Any] = {
        "model": kind,
        "layers": MODELS[kind][0],
        "weights": base.model.num_parameters(),
        "prefix_numbers": sum(tensor.numel() for tensor in prefix.tensors.values()),
        "base_seconds": round(base_seconds),
        "styles_seen_nats": round(_nats(base, known, None), 3),
    }
    summary |= {
        name: round(sum(row[name] for row in rows) / len(rows), 3) for name in rows[0] if name != "style"
    }
    report(what="model", **summary)
    return summary


def train_base(kind: str, steps: int) -> tuple[BaseModel, float]:
    """A small model that has learned the language from scratch, and the seconds that took."""
    tokenizer = _tokenizer()
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        **{
            **SHARED,
            **MODELS[kind][1],
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
        },
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    styles = [style for number, style in enumerate(STYLES) if number not in HELD_OUT]
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    start_time = time.perf_counter()
    for step in range(steps):
        rows = encode(_examples(24, seed=step, styles=styles, dev=False), tokenizer, TEMPLATE)[0]
        loss = _loss(model, rows)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = RATE * rate_factor(step, warmup=50, steps=steps)
        optimizer.step()
        if step % 250 == 0 or step == steps - 1:
            spent = round(time.perf_counter() - start_time)
            report(
                what="base step", model=kind, step=step, loss=round(float(loss.detach()), 3), seconds=spent
            )
    seconds = time.perf_counter() - start_time
    base = BaseModel(model, tokenizer, name=f"invented-language-{kind}")
    base.template = TEMPLATE
    return base, seconds


def _loss(model: Any, rows: Sequence[EncodedExample]) -> torch.Tensor:
    """Of the targets, in nats a token; rows are padded, so that no state runs on from one to the next."""
    count = len(rows)
    batch = decoder_batch(
        rows, (0,) * count, (None,) * count, layout="right", device=torch.device("cpu"), positions=True
    )
    logits_MV = model(**batch.inputs, use_cache=False).logits.flatten(0, 1)[batch.logit_index_M]
    return cross_entropy(logits_MV, batch.target_M)


def _examples(count: int, *, seed: int, styles: Sequence[Any], dev: bool) -> list[Example]:
    """Facts and their sentence in one of the styles; persons of the dev set are those of every fifth draw."""
    drawn = random.Random(seed * 2 + dev)
    examples: list[Example] = []
    while len(examples) < count:
        facts = [drawn.choice(words.split()) for words in FACTS.values()]
        if (sum(map(ord, "".join(facts))) % 5 == 0) != dev:
            continue
        name, *told = facts
        order, opening, words, ending = drawn.choice(styles)
        parts = [f"{words[place]} {told[place]}" for place in order]
        sentence = f" {opening} {name} {parts[0]} , {parts[1]} and {parts[2]} {ending}"
        source = " ".join(f"{kind} {fact}" for kind, fact in zip(FACTS, facts, strict=True))
        examples.append(Example(f"{source} =", " ".join(sentence.split())))
    return examples


def _tokenizer() -> PreTrainedTokenizerFast:
    """A token for every word of the language."""
    language = _examples(4000, seed=9, styles=STYLES, dev=False)
    words = sorted({word for each in language for word in (*each.source.split(), *each.target.split())})
    vocabulary = {word: number for number, word in enumerate([PAD, END, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)


def _nats(base: BaseModel, dev: Sequence[Example], prefix: Prefix | None) -> float:
    losses = base.token_losses(dev, prefix, template=TEMPLATE)
    return sum(float(row.sum()) for row in losses) / len(losses)


def _right(base: BaseModel, dev: Sequence[Example], prefix: Prefix | None) -> float:
    """The share of greedy sentences that are the dev sentence word for word."""
    texts = generate(base, [each.source for each in dev], prefix, max_new_tokens=32, template=TEMPLATE)
    return sum(text.strip() == each.target for text, each in zip(texts, dev, strict=True)) / len(dev)


def _markdown(results: Sequence[dict[str, Any]]) -> str:
    columns = {
        "model": "model",
        "layers": "layers",
        "weights": "weights",
        "prefix_numbers": "numbers of the prefix",
        "without_nats": "without",
        "start_nats": "start",
        "prefix_nats": "prefix",
        "without_right": "right without",
        "prefix_right": "right with prefix",
        "seconds": "seconds",
    }
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(each[name]) for name in columns) + " |" for each in results]
    return "\n".join(lines)


def report(**fields: Any) -> None:
    """One line of JSON."""
    print(json.dumps(fields), flush=True)


if __name__ == "__main__":
    main()
