"""Ways to serve many owners on vLLM that serve_vllm.py compares: who is asked, and for what."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from foreword import BaseModel, Prefix
from foreword.serving.engine.protocol import Row, Sampling
from foreword.serving.vllm.engine import SERVED_NAME, VllmEngine

SECRET = "of this benchmark alone, and no secret"
RANK = 8
PREFIXES, PLAIN, LORA, LARGE_BLOCKS = "prefixes", "plain", "LoRA", "plain, blocks of 128"


@dataclass(frozen=True)
class Way:
    """One way to serve the owners.

    Attributes:
        server: which vLLM.
        bodies: the requests of a round.
    """

    name: str
    server: str
    bodies: Callable[[int], list[dict[str, Any]]]


def make_ways(base: BaseModel, prefixes: Sequence[Prefix], given: Any) -> list[Way]:
    """What is measured: three ways, and with `vary` some that differ from one of them in one thing."""
    engine = VllmEngine(base, "http://127.0.0.1", SECRET)
    owner_texts = [_ids(given.length, f"owner {number}") for number in range(given.owners)]

    def texts(turn: int, name: str) -> list[tuple[int, tuple[int, ...]]]:
        """Owner and text of each request; no text comes twice."""
        return [
            (number % given.owners, _ids(given.prompt, f"{name} {turn} {number}"))
            for number in range(given.requests)
        ]

    def prefixed(turn: int, *, fresh: bool) -> list[dict[str, Any]]:
        sampling = Sampling(given.tokens, temperature=0.0)
        return [
            engine.body(
                Row(text, prefixes[owner], f"{owner} {turn if fresh else ''}", sampling, frozenset()),
                given.tokens,
            )
            | {"stream": False}
            for owner, text in texts(turn, "prefixes")
        ]

    def plain(turn: int, *, longer: bool, fresh: bool = False) -> list[dict[str, Any]]:
        return [
            _body(given, (owner_texts[owner] if longer else ()) + text)
            | ({"cache_salt": f"{owner} {turn}"} if fresh else {})
            for owner, text in texts(turn, "plain")
        ]

    def adapted(turn: int) -> list[dict[str, Any]]:
        return [_body(given, text) | {"model": f"adapter{owner}"} for owner, text in texts(turn, "LoRA")]

    found = [
        Way("prefixes", PREFIXES, lambda turn: prefixed(turn, fresh=False)),
        Way("plain, prompts of the same length", PLAIN, lambda turn: plain(turn, longer=True)),
    ]
    if given.lora:
        found.append(Way(f"LoRA, r = {RANK}", LORA, adapted))
    if given.vary:
        found += [
            Way("prefixes, none in the cache", PREFIXES, lambda turn: prefixed(turn, fresh=True)),
            Way("plain, nothing in the cache", PLAIN, lambda turn: plain(turn, longer=True, fresh=True)),
            Way("plain, prompts as short as with prefixes", PLAIN, lambda turn: plain(turn, longer=False)),
            Way(
                "plain requests to the vLLM with the connector",
                PREFIXES,
                lambda turn: plain(turn, longer=True),
            ),
            Way(LARGE_BLOCKS, LARGE_BLOCKS, lambda turn: plain(turn, longer=True)),
        ]
        if given.lora:
            found.append(
                Way("plain requests to the vLLM with LoRA", LORA, lambda turn: plain(turn, longer=True))
            )
    return found


def _body(given: Any, ids: Sequence[int]) -> dict[str, Any]:
    return {
        "model": SERVED_NAME,
        "prompt": list(ids),
        "max_tokens": given.tokens,
        "temperature": 0.0,
        "ignore_eos": True,
    }


def _ids(count: int, seed: str) -> tuple[int, ...]:
    """Random tokens without the special ones, which come first in the vocabulary of the default base."""
    drawn = random.Random(seed)
    return tuple(drawn.randrange(1000, 40_000) for _ in range(count))


def save_adapter(base: BaseModel, folder: Path, number: int) -> Path:
    """Random weights for every linear layer, in the form in which PEFT writes them."""
    drawn = torch.Generator().manual_seed(number)
    tensors, targets = {}, set()
    for name, module in base.model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in name:
            targets.add(name.rsplit(".", 1)[1])
            for part, shape in (("A", (RANK, module.in_features)), ("B", (module.out_features, RANK))):
                tensor = torch.randn(shape, generator=drawn) * 0.01
                tensors[f"base_model.model.{name}.lora_{part}.weight"] = tensor
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "bias": "none",
    }
    path = folder / f"adapter{number}"
    path.mkdir()
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({**settings, "target_modules": sorted(targets)}))
    return path
