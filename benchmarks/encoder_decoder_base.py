"""Small encoder-decoders trained from scratch, for `encoder_decoder.py`: all weights, in some minutes.

What they learn: verbalising (E2E's attributes to a sentence) and mending lines, attributes or sentences, of
which words were masked. How well they mend sentences, beside how well they write them from attributes, shows
whether they read their source.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.optimization import Adafactor

from foreword import Example, Template
from foreword.base.batch import encoder_decoder_batch
from foreword.encoding import EncodedExample, encode
from foreword.training.batch_sampler import BatchSampler
from foreword.training.trainer import rate_factor

PAD, END, MASK = "<pad>", "</s>", "<mask>"
MASKED_SHARE = 0.3
WARMUP = 50
WIDTH = 128
VOCABULARY = 1000


@dataclass(frozen=True)
class Recipe:
    """How a base is trained: AdamW for BART; for T5 Adafactor with steps in proportion to the weights, which
    it was made with (Raffel et al. 2020), for its embeddings are ten times larger than its matrices."""

    steps: int
    batch_size: int
    rate: float
    optimizer: Callable[[Iterable[torch.nn.Parameter], float], torch.optim.Optimizer]


def _adamw(parameters: Iterable[torch.nn.Parameter], rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01, fused=True)


def _adafactor(parameters: Iterable[torch.nn.Parameter], rate: float) -> torch.optim.Optimizer:
    return Adafactor(parameters, lr=rate, scale_parameter=True, relative_step=False, warmup_init=False)


RECIPES = {"bart": Recipe(2500, 16, 1e-3, _adamw), "t5": Recipe(3000, 32, 0.03, _adafactor)}


def train_base(
    kind: str, folder: Path, examples: list[Example], dev_examples: list[Example], steps: int | None
) -> None:
    """Train all weights of a small model from scratch, and save it with its dev losses."""
    recipe = RECIPES[kind]
    steps = steps or recipe.steps
    torch.manual_seed(0)
    tokenizer = _make_tokenizer(examples)
    model = _make_model(kind, tokenizer)
    template = Template(style="raw", end=END)
    rows, _ = encode(_lessons(examples, seed=1), tokenizer, template)
    dev_sets = {
        name: encode(part, tokenizer, template)[0] for name, part in _dev_lessons(dev_examples).items()
    }
    order = BatchSampler([row.tokens for row in rows], recipe.batch_size, 0, by_length=True)
    optimizer = recipe.optimizer(model.parameters(), recipe.rate)
    start_time = time.perf_counter()
    model.train()
    for step in range(steps):
        loss = _loss(model, [rows[i] for i in order.batch(step)])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * rate_factor(step, warmup=WARMUP, steps=steps)
        optimizer.step()
        if step % 200 == 0:
            spent = round(time.perf_counter() - start_time)
            report(
                what="base step", model=kind, step=step, loss=round(float(loss.detach()), 3), seconds=spent
            )
    model.eval()
    with torch.no_grad():
        dev = {name: round(float(_loss(model, part)), 3) for name, part in dev_sets.items()}
    seconds = round(time.perf_counter() - start_time)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "base.json").write_text(json.dumps({"steps": steps, "seconds": seconds, "dev": dev}))
    report(what="base", model=kind, dev_loss=dev, seconds=seconds)


def _loss(model: Any, rows: Sequence[EncodedExample]) -> torch.Tensor:
    batch = encoder_decoder_batch(
        rows, start_id=model.config.decoder_start_token_id, device=torch.device("cpu")
    )
    logits_MV = model(**batch.inputs, use_cache=False).logits.flatten(0, 1)[batch.logit_index_M]
    return cross_entropy(logits_MV, batch.target_M)


def _make_tokenizer(examples: list[Example]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, END, MASK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for e in examples for text in (e.source, e.target)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, mask_token=MASK, padding_side="right"
    )


def _make_model(kind: str, tokenizer: PreTrainedTokenizerFast) -> Any:
    width = WIDTH
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


def _lessons(examples: list[Example], seed: int) -> list[Example]:
    """What the base learns: half of it verbalising, a quarter each mending sentences and attributes."""
    generator = random.Random(seed)
    lessons = []
    for number, example in enumerate(examples):
        lessons.append(example)
        line = example.source if number % 2 else example.target
        lessons.append(Example(_masked(line, generator), line))
    return lessons


def _dev_lessons(dev_examples: list[Example]) -> dict[str, list[Example]]:
    generator = random.Random(2)
    return {
        "verbalising": dev_examples,
        "mending sentences": [Example(_masked(e.target, generator), e.target) for e in dev_examples],
        "mending attributes": [Example(_masked(e.source, generator), e.source) for e in dev_examples],
    }


def _masked(line: str, generator: random.Random) -> str:
    return " ".join(MASK if generator.random() < MASKED_SHARE else word for word in line.split(" "))


def report(**figures: Any) -> None:
    print(json.dumps(figures, ensure_ascii=False), flush=True)
