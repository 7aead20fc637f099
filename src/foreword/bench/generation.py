"""Many owners in one batch: with their prefixes, without any, and PEFT's way.

PEFT can't give rows of one batch different prefixes, so there each owner's row is generated after its
adapter has been set.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from foreword.base import BaseModel
from foreword.bench.rounds import Spread, Work, in_turns, spread
from foreword.generation import generate
from foreword.initialization import activations
from foreword.models import resolve
from foreword.prefix import Prefix

PROMPTS = [
    "name : The Copper Pot | Type : pub | food : English | price : cheap | area : riverside\n",
    "Write a short reply to a customer whose parcel is late, order 1187.\n",
    "The lighthouse keeper climbed the stairs every evening at six and",
    "Water boils at a lower temperature in the mountains because",
]
PREFIXES, PLAIN, PEFT = "prefixes", "no prefix", "PEFT, one adapter after another"


@dataclass(frozen=True)
class GenerationFigures:
    """One way.

    Attributes:
        way: which.
        tokens: new ones a second.
        ratio: how many times as fast prefixes in one batch are as this way, of each round.
    """

    way: str
    tokens: Spread
    ratio: Spread


def measure(
    base: BaseModel,
    *,
    owners: int,
    length: int,
    new_tokens: int,
    rounds: int,
    peft_rounds: int,
    on_round: Callable[[int], None] = lambda number: None,
) -> list[GenerationFigures]:
    """All ways in turns; PEFT, which is slow, in the first `peft_rounds` (0 leaves it out)."""
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(owners)]
    prefixes = [make_prefix(base, length, seed) for seed in range(owners)]
    # Tokens that end a text are banned, so that all ways make the same number of tokens.
    never_end = [base.tokenizer.decode([i]) for i in base.end_ids]

    def ours(given: list[Prefix] | None) -> Work:
        return lambda number: generate(
            base, prompts, given, raw=True, max_new_tokens=new_tokens, banned=never_end, batch_size=owners
        )

    ways = {PREFIXES: ours(prefixes), PLAIN: ours(None)}
    with tempfile.TemporaryDirectory() as folder:
        if peft_rounds:
            ways[PEFT] = _peft(base, prompts, prefixes, new_tokens, Path(folder))
        turns = in_turns(ways, rounds, fewer={PEFT: peft_rounds}, on_round=on_round)
    made = owners * new_tokens
    return [
        GenerationFigures(
            way, spread([made / each for each in turns.seconds[way]]), turns.faster(PREFIXES, way)
        )
        for way in ways
    ]


def make_prefix(base: BaseModel, length: int, seed: int) -> Prefix:
    """Real keys and values, of random tokens."""
    most = min(20_000, base.model.get_input_embeddings().weight.shape[0])
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(most // 20, most, (length,), generator=generator).tolist()
    key, value = activations(base, ids, ids, length)["decoder"]
    return Prefix({"decoder.key": key, "decoder.value": value}, base.identity)


def _peft(base: BaseModel, prompts: list[str], prefixes: list[Prefix], new: int, folder: Path) -> Work:
    """Adapters with the same keys and values, one generate call for each owner."""
    from peft import PeftModel

    from foreword.bench import peft_peer

    fresh = peft_peer.load(str(resolve(base.name).path), length=prefixes[0].length, projection=False)
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
    def run(number: int) -> None:
        # The round that warms up needs one row only.
        for owner, encoded in enumerate(inputs[:1] if number < 0 else inputs):
            model.set_adapter(str(owner))
            model.generate(**encoded, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)

    return run
