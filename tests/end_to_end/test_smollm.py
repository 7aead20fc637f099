"""The promises of one prefix on a real model: SmolLM2-135M-Instruct in float32."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from foreword import BaseModel, Example, Prefix, generate
from foreword.base.attention import AttentionContext, attention_context
from foreword.base.gradient_checkpointing import gradient_checkpointing
from foreword.base.loss import target_losses
from foreword.base.prefix_batch import PrefixBatch, StreamBlock
from foreword.encoding import encode
from foreword.training.initialization import activations
from support.by_hand import greedy, layers_of, logits, token_losses

pytestmark = pytest.mark.real_model

TEXTS = [
    "The lighthouse keeper climbed the stairs every evening at six and",
    "Dear customer, thank you for your letter of the third of May, in which you",
    "def area(radius):\n    return",
    "Water boils at a lower temperature in the mountains because",
]
EXAMPLES = [
    Example("name : The Copper Pot | Type : pub | area : riverside", "The Copper Pot is a pub by the river."),
    Example("name : Lotus | food : Thai", "Lotus serves Thai food."),
    Example("a", "b"),
    Example("Translate into French: good morning", "Bonjour, comment allez-vous ce matin ?"),
]


def real_prefix(base: BaseModel, text: str, length: int, noise: float = 0.3) -> Prefix:
    """Real keys and values with noise: of the size that training ends in, unlike any text."""
    ids = (base.tokenizer(text)["input_ids"] * length)[:length]
    key, value = activations(base, ids, ids, length)["decoder"]
    generator = torch.Generator().manual_seed(length)
    tensors = {
        name: tensor + noise * torch.randn(tensor.shape, generator=generator)
        for name, tensor in (("decoder.key", key), ("decoder.value", value))
    }
    return Prefix(tensors, base.identity, base.template)


@pytest.fixture(autouse=True, scope="module")
def all_cores() -> Iterator[None]:
    """Where no other process of the tests wants them; given back for tests that compare bit by bit."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def sixteen(smollm: BaseModel) -> list[Prefix | None]:
    lengths = [1, 2, 3, 5, 8, 10, 13, 16, 20, 24, 31, 32, 33, 40, 64]
    return [real_prefix(smollm, TEXTS[n % 4], n) for n in lengths] + [None]


def test_logits_equal_those_of_past_key_values(smollm: BaseModel) -> None:
    prefix = real_prefix(smollm, TEXTS[0], 12)
    ids = smollm.tokenizer(TEXTS[1])["input_ids"]
    positions = torch.arange(12, 12 + len(ids))[None]
    with torch.no_grad():
        expected = logits(smollm.model, ids, layers_of(prefix))
        with attention_context(AttentionContext(prefixes=PrefixBatch.stack([prefix], smollm.device))):
            found = smollm.model(
                input_ids=torch.tensor([ids]), position_ids=positions, use_cache=False
            ).logits[0]
    assert (found - expected).abs().max() < 1e-4


def test_a_row_computes_the_same_alone_and_among_sixteen_in_every_layout(
    smollm: BaseModel, sixteen: list[Prefix | None]
) -> None:
    rows = [EXAMPLES[i % 4] for i in range(16)]
    expected = []
    for example, prefix in zip(rows, sixteen, strict=True):
        source = smollm.template.source_ids(smollm.tokenizer, example.source)
        target = smollm.template.target_ids(smollm.tokenizer, example.target)
        with torch.no_grad():
            layers = None if prefix is None else layers_of(prefix)
            expected.append(token_losses(smollm.model, source, target, layers))
    for layout in ("flat", "left", "right"):
        found = smollm.token_losses(rows, sixteen, layout=layout)  # type: ignore[arg-type]
        for mine, theirs in zip(found, expected, strict=True):
            assert (mine.sum() - theirs.sum()).abs() <= 1e-5 * theirs.sum()
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_greedy_tokens_equal_those_computed_by_hand(smollm: BaseModel, sixteen: list[Prefix | None]) -> None:
    prompts = [TEXTS[i % 4] for i in range(16)]
    together = generate(smollm, prompts, sixteen, max_new_tokens=8, raw=True)
    for place in (0, 5, 14, 15):
        prefix = sixteen[place]
        layers = None if prefix is None else layers_of(prefix)
        ids = greedy(smollm.model, smollm.tokenizer(prompts[place])["input_ids"], layers, 8, smollm.end_ids)
        assert together[place] == smollm.tokenizer.decode(ids)
        assert together[place] == generate(smollm, [prompts[place]], prefix, max_new_tokens=8, raw=True)[0]


@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_equal_those_of_past_key_values(smollm: BaseModel, checkpointed: bool) -> None:
    rows, _ = encode(EXAMPLES[:3], smollm.tokenizer, smollm.template)
    prefix = real_prefix(smollm, TEXTS[3], 10)
    key, value = (prefix.tensors[f"decoder.{part}"].clone().requires_grad_() for part in ("key", "value"))
    prefixes = PrefixBatch({"decoder": StreamBlock(key[None], value[None], (10,))}, (0, 0, 0))
    with gradient_checkpointing(smollm.model, checkpointed):
        target_losses(smollm.model, smollm.batch(rows, prefixes, "flat"), prefixes).mean().backward()

    key_2, value_2 = (tensor.detach().clone().requires_grad_() for tensor in (key, value))
    layers = list(zip(key_2, value_2, strict=True))
    by_row = [token_losses(smollm.model, r.source_ids, r.target_ids, layers) for r in rows]
    torch.cat(by_row).mean().backward()
    for mine, theirs in ((key.grad, key_2.grad), (value.grad, value_2.grad)):
        assert mine is not None
        assert theirs is not None
        assert (mine - theirs).norm() <= 1e-5 * theirs.norm()


def test_the_model_without_a_prefix_knows_the_capital_of_france(smollm: BaseModel) -> None:
    assert "Paris" in generate(smollm, ["The capital of France is"], raw=True, max_new_tokens=4)[0]
