"""Generation for many owners in one batch: with their prefixes, without any, and PEFT's way.

PEFT can't give rows of one batch different prefixes, so there each owner's row is generated after its
adapter has been set.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from foreword.base.base_model import BaseModel
from foreword.errors import UsageError
from foreword.generation import generate
from foreword.models import resolve
from foreword.prefix import Prefix
from foreword.prefix_sizes import tensor_names
from foreword.research.bench import roofline
from foreword.research.bench.roofline import Limits
from foreword.research.bench.timing import Work, in_turns, spread, waiting_for
from foreword.training.initialization import activations

PROMPTS = [
    "name : The Copper Pot | Type : pub | food : English | price : cheap | area : riverside\n",
    "Write a short reply to a customer whose parcel is late, order 1187.\n",
    "The lighthouse keeper climbed the stairs every evening at six and",
    "Water boils at a lower temperature in the mountains because",
]
PREFIXES, PLAIN, PEFT = "prefixes", "no prefix", "PEFT, one adapter after another"
MACHINE = "machine"

COLUMNS = ("way", "tokens/s", "share of the machine's limit", "prefixes in one batch against it")
"""Of a row of figures: which way, new tokens a second, share of the machine's limit for this batch in the
same round (`limit_seconds`), how many times as fast prefixes in one batch are as this way, of each round."""


def check(base: BaseModel, length: int, new_tokens: int) -> None:
    """See that prompts and new tokens fit into the base's positions.

    Raises:
        UsageError: they do not.
        WindowExceeded: the prefix alone does not.
    """
    longest = max(_tokens(base, PROMPTS))
    limit = base.max_text_tokens(length)
    if limit is not None and longest + new_tokens > limit:
        raise UsageError(
            f"prompts of {longest} tokens and {new_tokens} new ones don't fit into the {base.max_positions} "
            f"positions of {base.name} behind {length} virtual tokens; ask for fewer"
        )


def measure(
    base: BaseModel,
    *,
    owners: int,
    length: int,
    new_tokens: int,
    rounds: int,
    peft_rounds: int,
    bandwidth: float,
    on_round: Callable[[int], None],
) -> list[tuple[Any, ...]]:
    """A row of figures (`COLUMNS`) of each way, in turns; PEFT, which is slow, in the first `peft_rounds`
    (0 leaves it out).

    Args:
        bandwidth: of this machine, see `roofline.Limits`; its rate of products is measured in every round.
    """
    prompts = prompts_of(owners)
    ways = {
        PREFIXES: batch_of(base, prompts, length=length, new_tokens=new_tokens, distinct=owners),
        PLAIN: batch_of(base, prompts, length=length, new_tokens=new_tokens, distinct=0),
    }
    lengths = {PREFIXES: length, PLAIN: 0, PEFT: length}
    with tempfile.TemporaryDirectory() as folder:
        if peft_rounds:
            prefixes = [make_prefix(base, length, seed) for seed in range(owners)]
            ways[PEFT] = _peft(base, prompts, prefixes, new_tokens, Path(folder))
        timed = dict(ways)
        timed[MACHINE], operations = roofline.products(base.dtype, base.device, count=3)
        turns = in_turns(
            timed, rounds, fewer={PEFT: peft_rounds}, wait=waiting_for(base.device), on_round=on_round
        )
    made = owners * new_tokens
    figures = []
    for way in ways:
        work = work_of(base, prompts, lengths[way], new_tokens)
        taken = zip(turns.seconds[way], turns.seconds[MACHINE], strict=False)
        shares = [
            limit_seconds(base, work, new_tokens, Limits(operations / machine_seconds, bandwidth)) / seconds
            for seconds, machine_seconds in taken
        ]
        tokens = spread([made / each for each in turns.seconds[way]])
        figures.append((way, tokens, spread(shares), turns.faster(PREFIXES, way)))
    return figures


def limit_seconds(base: BaseModel, operations: int, new_tokens: int, limits: Limits) -> float:
    """What the machine needs at least: for the operations, or to read the weights for every new token of the
    batch, whichever takes longer."""
    return max(operations / limits.flops, new_tokens * roofline.weight_bytes(base) / limits.bandwidth)


def work_of(base: BaseModel, prompts: Sequence[str], length: int, new_tokens: int) -> int:
    """Operations of the whole batch."""
    return roofline.generation(base, _tokens(base, prompts), length, new_tokens)


def prompts_of(rows: int) -> list[str]:
    """As many prompts."""
    return [PROMPTS[row % len(PROMPTS)] for row in range(rows)]


def batch_of(base: BaseModel, prompts: Sequence[str], *, length: int, new_tokens: int, distinct: int) -> Work:
    """Work that generates for all prompts in one batch, under so many distinct prefixes in turn (0: none)."""
    made = [make_prefix(base, length, seed) for seed in range(distinct)]
    prefixes = [made[row % distinct] for row in range(len(prompts))] if distinct else None
    # Tokens that end a text are banned, so that all ways make the same number of tokens.
    never_end = [base.tokenizer.decode([i]) for i in base.end_ids]
    return lambda number: generate(
        base,
        prompts,
        prefixes,
        raw=True,
        max_new_tokens=new_tokens,
        banned=never_end,
        batch_size=len(prompts),
    )


def make_prefix(base: BaseModel, length: int, seed: int) -> Prefix:
    """Real keys and values, of random tokens."""
    most = min(20_000, base.model.get_input_embeddings().weight.shape[0])
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(most // 20, most, (length,), generator=generator).tolist()
    return Prefix(tensor_names(activations(base, ids, ids, length)), base.identity)


def save_as_peft(model: object, prefix: Prefix, folder: Path) -> None:
    """Write an adapter of PEFT with these keys and values, from a fresh `peft_peer.load` of their length."""
    states_PL2HD = torch.stack([prefix.key(), prefix.value()], dim=1).permute(3, 0, 1, 2, 4)
    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight.copy_(states_PL2HD.flatten(1))  # type: ignore[attr-defined]
    model.save_pretrained(folder)  # type: ignore[attr-defined]


def _tokens(base: BaseModel, prompts: Sequence[str]) -> list[int]:
    return [len(base.raw_template.source_ids(base.tokenizer, prompt)) for prompt in prompts]


def _peft(base: BaseModel, prompts: list[str], prefixes: list[Prefix], new: int, folder: Path) -> Work:
    """Adapters with the same keys and values, one generate call for each owner."""
    from peft import PeftModel

    from foreword.research.bench import peft as peft_peer

    of_base = str(resolve(base.name).path)
    fresh = peft_peer.load(of_base, length=prefixes[0].length, projection=False, like=base)
    paths = []
    for number, prefix in enumerate(prefixes):
        paths.append(folder / str(number))
        save_as_peft(fresh, prefix, paths[-1])
    model = PeftModel.from_pretrained(fresh.get_base_model(), paths[0], adapter_name="0")
    for number, path in enumerate(paths[1:], 1):
        model.load_adapter(path, adapter_name=str(number))
    model.to(base.device).eval()
    inputs = [base.tokenizer(prompt, return_tensors="pt").to(base.device) for prompt in prompts]

    @torch.no_grad()
    def run(number: int) -> None:
        # The round that warms up needs one row only.
        for owner, encoded in enumerate(inputs[:1] if number < 0 else inputs):
            model.set_adapter(str(owner))
            model.generate(**encoded, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)

    return run
