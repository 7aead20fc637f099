"""A row's positions are its own under every kind of rotary embedding, however long its neighbours are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from foreword import BaseModel, Example, generate
from foreword.base.rope import short_positions
from foreword.encoding import encode_example
from foreword.errors import UnsupportedArchitecture, UsageError, WindowExceeded, WrongBaseModel
from support.architectures.zoo import EXPERTS, Architecture
from support.by_hand_attention import greedy
from support.rotary_kinds import (
    FACTORS,
    KINDS,
    POSITIONS,
    SHORT,
    SIZES,
    base_of,
    model_of,
    saved,
    settings,
)
from support.stand_ins import byte_tokenizer, random_prefix


def text(length: int) -> str:
    return ("abcde fgh. " * (length // 10 + 1))[:length]


def test_every_kind_of_transformers_is_here() -> None:
    assert set(KINDS) - {"default"} == set(ROPE_INIT_FUNCTIONS)


@pytest.mark.parametrize("kind", [*KINDS, "mrope"])
def test_a_row_beside_rows_of_ten_a_hundred_and_a_thousand_times_its_length(
    kind: str, tmp_path: Path
) -> None:
    base = base_of(kind, tmp_path)
    assert base.max_positions == POSITIONS
    prefix = random_prefix(base, 4, scale=0.5)
    sources, prefixes = [text(n - 1) for n in (2, 20, 200, 2000)], [prefix, None, prefix, None]
    examples = [Example(source, "z") for source in sources]
    together = base.token_losses(examples, prefixes, batch_tokens=10_000)
    texts = generate(base, sources, prefixes, max_new_tokens=3)
    for n in (0, 1):
        (alone,) = base.token_losses(examples[n : n + 1], prefixes[n])
        torch.testing.assert_close(together[n], alone, rtol=1e-5, atol=0)
        assert texts[n] == generate(base, sources[n], prefixes[n], max_new_tokens=3)[0]


# -- LongRoPE: two sets of factors ------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with LongRoPE that, like Phi-3, drops a cache that reaches the positions of training."""
    rope = {**settings("longrope"), "partial_rotary_factor": 1.0}
    sizes = {**SIZES, "sliding_window": None, "rope_parameters": rope, "max_position_embeddings": 4 * SHORT}
    changes = {"original_max_position_embeddings": SHORT}
    return saved(Architecture("", "phi3", {**sizes, **changes}).model(), tmp_path)


@torch.no_grad()
def losses_of_transformers(folder: Path, base: BaseModel, example: Example) -> torch.Tensor:
    row, _ = encode_example(example, base.tokenizer, base.template)
    model, ids = (
        AutoModelForCausalLM.from_pretrained(folder),
        torch.tensor([*row.source_ids, *row.target_ids]),
    )
    log = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
    return -log.gather(1, ids[1:, None])[len(row.source_ids) - 1 :, 0]


def test_every_text_that_fits_has_the_losses_of_transformers(folder: Path) -> None:
    base = BaseModel.load(folder, device="cpu")
    assert base.max_positions == SHORT == short_positions(base.model.config)
    examples = [Example("a", text(n)) for n in (3, SHORT - 3)]
    found = base.token_losses(examples)
    for example, mine in zip(examples, found, strict=True):
        torch.testing.assert_close(mine, losses_of_transformers(folder, base, example))
    for refused in (Example("a", text(SHORT)), Example(text(SHORT), "z")):
        with pytest.raises(
            WindowExceeded, match="short factors of LongRoPE .* long_context .* 128 positions"
        ):
            base.token_losses([refused])
    with pytest.raises(WindowExceeded, match="long_context"):
        base.token_losses(examples, random_prefix(base, SHORT - 1))


def test_generation_ends_where_the_short_factors_do(folder: Path) -> None:
    base = BaseModel.load(folder, device="cpu")
    prefix = random_prefix(base, 4)
    prompts = ["abc def.", text(20)]
    found = generate(base, prompts, prefix, max_new_tokens=100, min_new_tokens=100)
    lengths = [len(base.template.source_ids(base.tokenizer, prompt)) for prompt in prompts]
    assert [len(each) for each in found] == [SHORT - 4 - length for length in lengths]
    alone = [generate(base, [each], prefix, max_new_tokens=100, min_new_tokens=100)[0] for each in prompts]
    assert alone == found


def test_with_the_option_every_text_has_the_long_factors(folder: Path) -> None:
    """Independently: transformers turns the beginning of a long text by the long factors, too."""
    base = BaseModel.load(folder, device="cpu", long_context=True)
    assert base.max_positions == 4 * SHORT
    examples = [Example("a", text(2 * SHORT)), Example("a", text(5))]
    expected = losses_of_transformers(folder, base, examples[0])
    whole, short = base.token_losses(examples)
    torch.testing.assert_close(whole, expected)
    torch.testing.assert_close(short[:5], expected[:5])
    assert not torch.allclose(BaseModel.load(folder, device="cpu").token_losses(examples[1:])[0], short)
    # Past the positions of training token by token, where Phi-3 in transformers starts anew without a cache.
    prompts = [text(SHORT - 3), "abc"]
    prefix = random_prefix(base, 2)
    texts = generate(base, prompts, prefix, max_new_tokens=8, min_new_tokens=8)
    for prompt, written in zip(prompts, texts, strict=True):
        ids = base.template.source_ids(base.tokenizer, prompt)
        assert written == base.tokenizer.decode(greedy(base.model, ids, prefix.tensors, 8, frozenset()))


def test_a_prefix_of_long_factors_fits_no_base_with_short_ones(folder: Path) -> None:
    short, long = (BaseModel.load(folder, device="cpu", long_context=option) for option in (False, True))
    with pytest.raises(WrongBaseModel):
        short.token_losses([Example("a", "b")], random_prefix(long, 2))
    assert long.weights_checksum() == short.weights_checksum()


def test_the_option_is_refused_for_positions_without_long_factors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="model type llama are yarn, not longrope"):
        BaseModel.load(saved(model_of("yarn"), tmp_path), device="cpu", long_context=True)


def test_phi_moe_takes_the_scale_of_long_texts_too(tmp_path: Path) -> None:
    rope = {**settings("longrope"), "short_mscale": 1.1, "long_mscale": 1.3}
    more = {"rope_parameters": rope, "max_position_embeddings": 4 * SHORT, "sliding_window": None}
    architecture = Architecture("", "phimoe", {**SIZES, **EXPERTS, **more})
    folder = saved(architecture.model(), tmp_path)
    base = BaseModel.load(folder, device="cpu", long_context=True)
    angles = base.model.model.rotary_emb(torch.zeros(1), torch.tensor([[0, 3]]))
    inverse = 1 / (torch.tensor(FACTORS["long_factor"]) * 100.0 ** (torch.arange(0, 8, 2) / 8))
    torch.testing.assert_close(angles[0][0, :, :4], 1.3 * torch.stack([inverse * 0, inverse * 3]).cos())
    assert BaseModel.load(folder, device="cpu").max_positions == SHORT


def test_angles_that_depend_on_the_longest_row_are_refused() -> None:
    """As a kind would that is not known here: it takes others where any row of the batch is long."""
    model = model_of("default")
    rotary = model.model.rotary_emb.forward

    def stretched(hidden: torch.Tensor, position_ids: torch.Tensor) -> Any:
        return rotary(hidden, position_ids / (1 if position_ids.max() < SHORT else 2))

    model.model.rotary_emb.forward = stretched
    with pytest.raises(UnsupportedArchitecture, match="by the length of other rows"):
        BaseModel(model, byte_tokenizer(), name="stretched")
