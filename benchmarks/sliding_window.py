"""A prefix beyond a sliding window: Foreword and PEFT with the same keys and values.

    python -m benchmarks.sliding_window --text trainset.csv --dev devset.csv

Two prefixes. One is the activations of a sentence with a fact in it; the prompt is `n` tokens of E2E
sentences that end in the beginning of that fact. Measured at the prompt's last position against the same
prompt without the prefix: the KL divergence KL(with || without) of the next token, the largest change of a
logit, and how likely the fact's next word is. The other is trained on E2E as it is, in short texts; measured
is the loss of dev targets behind their source alone, and behind `n` tokens of E2E sentences that end in it.

`Foreword` sees the prefix from no farther than a window reaches (`text-after-prefix-within-window`, what
training takes for such a base); `seen from afar` is the same prefix under plain `text-after-prefix`.
PEFT loads the folder that Foreword exports. `text in front` is no prefix: the same sentence as ordinary text
of the plain model, under its ordinary window, as a check of both. `--steps 0`: no trained prefix.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from foreword import BaseModel, Example, Prefix, train
from foreword.base.attention import AttentionContext, attention_context
from foreword.base.prefix_batch import PrefixBatch
from foreword.encoding import encode_example
from foreword.examples import read_examples
from foreword.interop import export_peft
from foreword.models import resolve
from foreword.prefix import Positions
from foreword.prefix_sizes import tensor_names
from foreword.training.initialization import activations

FACTS = [
    ("The password of the harbour gate is", " orange"),
    ("The name of the lighthouse keeper's dog is", " Wellington"),
    ("The ferry to the island leaves from pier", " seven"),
    ("The colour of the captain's coat is", " purple"),
]
"""A beginning, and the one word that only the prefix knows."""

AFAR: Positions = "text-after-prefix"
WAYS = ("none", "Foreword", "seen from afar", "PEFT", "text in front")

SHORTEST_FILLED = 100
"""Prompts of fewer tokens have no room for a source."""

Logits = Callable[[list[int]], torch.Tensor]
"""From the ids of a prompt to the logits behind its last token, `[V]`."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", required=True, help="E2E file: what prompts are made of, and trained on")
    parser.add_argument("--dev", required=True, help="E2E file of the targets whose loss is measured")
    parser.add_argument("--base", default="gemma3-270m")
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[10, 400, 600, 1500])
    parser.add_argument("--facts", type=int, default=len(FACTS), choices=range(1, len(FACTS) + 1))
    parser.add_argument("--steps", type=int, default=25, help="of training; 0 for no trained prefix")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--length", type=int, default=10)
    parser.add_argument("--dev-rows", type=int, default=4)
    arguments = parser.parse_args()
    base = BaseModel.load(arguments.base, dtype=torch.float32, device="cpu")
    plain = AutoModelForCausalLM.from_pretrained(
        resolve(arguments.base).path, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    config = base.model.config
    kinds = Counter(getattr(config, "layer_types", ["full_attention"] * config.num_hidden_layers))
    report(what="layers", **kinds, window=getattr(config, "sliding_window", None))
    filler = _filler(base, arguments.text, max(arguments.prompt_tokens))
    measured = []
    for tokens in arguments.prompt_tokens:
        for number, (beginning, answer) in enumerate(FACTS[: arguments.facts]):
            measured += _measure(base, plain, filler, tokens, number, beginning, answer)
    print("\n" + ", ".join(f"{count} {kind} layers" for kind, count in kinds.items()))
    print(_markdown(measured, arguments.prompt_tokens))
    if arguments.steps:
        print("\n" + _trained(base, plain, filler, arguments))


# -- a fact ------------------------------------------------------------------------------------


def _measure(
    base: BaseModel, plain: Any, filler: list[int], tokens: int, number: int, beginning: str, answer: str
) -> list[dict[str, Any]]:
    """The ways on one fact and one prompt, each against the prompt without a prefix."""
    begin = [base.tokenizer.bos_token_id]
    fact = [*begin, *_ids(base, f"{beginning}{answer}.\n")]
    ending = _ids(base, beginning)
    if tokens < len(ending):
        raise SystemExit(f"a prompt of {tokens} tokens can't hold the {len(ending)} of {beginning!r}")
    prompt = [*filler[len(filler) - tokens + len(ending) :], *ending]
    answer_id = _ids(base, answer)[0]
    tensors = tensor_names(activations(base, fact, fact, len(fact)))
    prefix = Prefix(tensors, base.identity, positions=base.positions)
    without = plain_logits(plain)([*begin, *prompt])
    ways: dict[str, Logits] = {
        "Foreword": foreword_logits(base, prefix),
        "seen from afar": foreword_logits(base, dataclasses.replace(prefix, positions=AFAR)),
        "text in front": lambda ids: plain_logits(plain)([*fact, *ids]),
    }
    results = [_difference("none", tokens, number, without, without, answer_id)]
    with tempfile.TemporaryDirectory() as folder:
        export_peft(prefix, Path(folder) / "peft", base)
        peft = PeftModel.from_pretrained(plain, Path(folder) / "peft").eval()
        ways["PEFT"] = peft_logits(peft)
        for way, logits in ways.items():
            try:
                results.append(_difference(way, tokens, number, without, logits(prompt), answer_id))
            except Exception as error:  # what a peer does here is the finding
                if way != "PEFT":
                    raise
                results.append({"way": way, "tokens": tokens, "error": f"{type(error).__name__}: {error}"})
            report(prefix_tokens=len(fact), **results[-1])
    return results


@torch.no_grad()
def _difference(
    way: str, tokens: int, fact: int, without_V: torch.Tensor, with_V: torch.Tensor, answer_id: int
) -> dict[str, Any]:
    before_V, after_V = (logits.double().log_softmax(-1) for logits in (without_V, with_V))
    return {
        "way": way,
        "tokens": tokens,
        "fact": fact,
        "kl": float((after_V.exp() * (after_V - before_V)).sum()),
        "logit_change": float((with_V - without_V).abs().max()),
        "answer": float(after_V[answer_id]),
    }


# -- a trained prefix --------------------------------------------------------------------------


def _trained(base: BaseModel, plain: Any, filler: list[int], arguments: argparse.Namespace) -> str:
    """Loss of dev targets behind short and long prompts, as a table."""
    start_time = time.perf_counter()
    prefix = train(
        base,
        read_examples(arguments.text),
        length=arguments.length,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        template=base.template,
    )
    report(what="trained", steps=arguments.steps, seconds=round(time.perf_counter() - start_time))
    dev_examples = read_examples(arguments.dev)
    dev_examples = dev_examples[:: len(dev_examples) // arguments.dev_rows][: arguments.dev_rows]
    lines = ["| prompt | none | Foreword | seen from afar | PEFT |", "|---|---|---|---|---|"]
    afar = dataclasses.replace(prefix, positions=AFAR)
    with tempfile.TemporaryDirectory() as folder:
        export_peft(prefix, Path(folder) / "peft", base)
        peft = PeftModel.from_pretrained(plain, Path(folder) / "peft").eval()
        for tokens in (0, *(n for n in arguments.prompt_tokens if n >= SHORTEST_FILLED)):
            rows = [_behind(base, filler, tokens, example) for example in dev_examples]
            losses = {
                "none": base.token_losses(rows),
                "Foreword": base.token_losses(rows, prefix),
                "seen from afar": base.token_losses(rows, afar),
                "PEFT": [_peft_losses(base, peft, row, prefix) for row in rows],
            }
            found = {way: float(torch.cat(each).double().mean()) for way, each in losses.items()}
            report(what="trained", prompt_tokens=tokens, **found)
            cells = " | ".join(f"{loss:.3f}" for loss in found.values())
            lines.append(f"| {f'{tokens} tokens' if tokens else 'the source alone'} | {cells} |")
    return "\n".join(lines)


def _behind(base: BaseModel, filler: list[int], tokens: int, example: Example) -> Example:
    """The example with E2E sentences in front of its source: about `tokens` in all."""
    room = max(0, tokens - len(_ids(base, str(example.source))))
    front = base.tokenizer.decode(filler[-room:]) if room else ""
    return Example(front + str(example.source), example.target)


@torch.no_grad()
def _peft_losses(base: BaseModel, peft: Any, example: Example, prefix: Prefix) -> torch.Tensor:
    row, _ = encode_example(example, base.tokenizer, prefix.template)
    ids = torch.tensor([[*row.source_ids, *row.target_ids[:-1]]])
    kept = len(row.target_ids)
    logits_MV = peft(input_ids=ids, attention_mask=torch.ones_like(ids), logits_to_keep=kept).logits[0]
    return cross_entropy(logits_MV, torch.tensor(row.target_ids), reduction="none")


# -- ways to the logits --------------------------------------------------------------------------


def foreword_logits(base: BaseModel, prefix: Prefix) -> Logits:
    rows = PrefixBatch.stack([prefix], base.device)

    @torch.no_grad()
    def logits(ids: list[int]) -> torch.Tensor:
        positions = torch.arange(prefix.length, prefix.length + len(ids))[None]
        inputs = {"input_ids": torch.tensor([ids]), "position_ids": positions}
        with attention_context(AttentionContext(prefixes=rows)):
            return base.model(**inputs, use_cache=False, logits_to_keep=1).logits[0, -1]  # type: ignore[no-any-return]

    return logits


def plain_logits(model: Any) -> Logits:
    @torch.no_grad()
    def logits(ids: list[int]) -> torch.Tensor:
        return model(input_ids=torch.tensor([ids]), use_cache=False, logits_to_keep=1).logits[0, -1]  # type: ignore[no-any-return]

    return logits


def peft_logits(model: Any) -> Logits:
    @torch.no_grad()
    def logits(ids: list[int]) -> torch.Tensor:
        inputs = {
            "input_ids": torch.tensor([ids]),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        }
        return model(**inputs, logits_to_keep=1).logits[0, -1]  # type: ignore[no-any-return]

    return logits


# -- prompts and tables --------------------------------------------------------------------------


def _ids(base: BaseModel, text: str) -> list[int]:
    return base.tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[no-any-return]


def _filler(base: BaseModel, path: str, tokens: int) -> list[int]:
    """Sentences from the whole file, a line each, and a line's end behind the last."""
    sentences = [example.target for example in read_examples(path)][::37]
    ids: list[int] = []
    while len(ids) < tokens:
        for sentence in sentences:
            ids += _ids(base, sentence + "\n")
    return ids


def _markdown(measured: list[dict[str, Any]], lengths: list[int]) -> str:
    lines = [
        "| prompt tokens | way | KL (nats) | largest logit change | probability of the fact |",
        "|---|---|---|---|---|",
    ]
    for tokens in lengths:
        for way in WAYS:
            rows = [row for row in measured if row["tokens"] == tokens and row["way"] == way]
            if errors := [row["error"] for row in rows if "error" in row]:
                lines.append(f"| {tokens} | {way} | {errors[0]} | | |")
                continue
            kl, change = (sum(row[name] for row in rows) / len(rows) for name in ("kl", "logit_change"))
            likely = sum(math.exp(row["answer"]) for row in rows) / len(rows)
            lines.append(f"| {tokens} | {way} | {kl:.3f} | {change:.2f} | {likely:.1%} |")
    return "\n".join(lines)


def report(**figures: Any) -> None:
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
