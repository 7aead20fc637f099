"""What a row computes depends on its text and its prefix, on nothing else."""

from __future__ import annotations

import pytest
import torch

from foreword import BaseModel
from foreword.base.attention import AttentionContext, attention_context
from foreword.base.gradient_checkpointing import gradient_checkpointing
from foreword.base.loading import choose_kernel
from foreword.base.loss import target_losses
from foreword.base.prefix_batch import PrefixBatch, StreamBlock
from foreword.encoding import encode
from support.by_hand import layers_of, token_losses
from support.stand_ins import VOCABULARY, byte_tokenizer, random_examples, random_prefix, tiny_llama


@pytest.fixture(params=["sdpa", "eager"])
def base(request: pytest.FixtureRequest) -> BaseModel:
    model = tiny_llama()
    model.set_attn_implementation(f"foreword-{request.param}")
    return BaseModel(model, byte_tokenizer(), name="tiny-llama")


def expected_losses(base: BaseModel, examples: list, prefixes: list) -> list[torch.Tensor]:
    rows = []
    for example, prefix in zip(examples, prefixes, strict=True):
        source = base.template.source_ids(base.tokenizer, example.source)
        target = base.template.target_ids(base.tokenizer, example.target)
        layers = None if prefix is None else layers_of(prefix)
        rows.append(token_losses(base.model, source, target, layers))
    return rows


@pytest.mark.parametrize("layout", ["flat", "right", "left"])
def test_losses_equal_those_of_past_key_values_for_mixed_prefixes(base: BaseModel, layout: str) -> None:
    examples = random_examples(6)
    prefixes = [random_prefix(base, n, seed=n) if n else None for n in (3, 0, 7, 1, 0, 12)]
    found = base.token_losses(examples, prefixes, layout=layout)
    for mine, theirs in zip(found, expected_losses(base, examples, prefixes), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["flat", "right", "left"])
def test_row_is_independent_of_its_neighbours(base: BaseModel, layout: str) -> None:
    examples = random_examples(5)
    prefixes = [random_prefix(base, 4, seed=n) for n in range(4)] + [None]
    together = base.token_losses(examples, prefixes, layout=layout)
    for index in range(5):
        alone = base.token_losses([examples[index]], [prefixes[index]], layout=layout)[0]
        torch.testing.assert_close(together[index], alone, rtol=1e-5, atol=1e-6)


def test_changing_a_neighbours_prefix_and_text_changes_nothing(tiny_base: BaseModel) -> None:
    mine, other, another = random_examples(3)
    prefix = random_prefix(tiny_base, 4)
    one = tiny_base.token_losses([mine, other], [prefix, random_prefix(tiny_base, 9, seed=5)])[0]
    two = tiny_base.token_losses([mine, another], [prefix, random_prefix(tiny_base, 9, seed=6, scale=50)])[0]
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_prefix_changes_the_losses_and_none_does_not(tiny_base: BaseModel) -> None:
    examples = random_examples(2)
    plain = tiny_base.token_losses(examples)
    mixed = tiny_base.token_losses(examples, [random_prefix(tiny_base, 4), None])
    assert (plain[0] - mixed[0]).abs().max() > 0.01
    torch.testing.assert_close(plain[1], mixed[1], rtol=1e-5, atol=1e-6)


def test_without_foreword_in_force_the_model_computes_what_transformers_does(base: BaseModel) -> None:
    ids = torch.randint(1, VOCABULARY, (2, 9))
    mask = torch.tensor([[1] * 9, [0] * 3 + [1] * 6])
    ours = base.model(input_ids=ids, attention_mask=mask).logits
    plain = tiny_llama().eval()(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(ours[mask.bool()], plain[mask.bool()], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("layout", ["flat", "right", "left"])
def test_gradients_equal_those_of_past_key_values(base: BaseModel, layout: str, checkpointed: bool) -> None:
    rows, _ = encode(random_examples(3), base.tokenizer, base.template)
    prefix = random_prefix(base, 5)
    key, value = (prefix.tensors[f"decoder.{part}"].clone().requires_grad_() for part in ("key", "value"))
    blocks = {"decoder": StreamBlock(key[None], value[None], (5,))}
    prefixes = PrefixBatch(blocks=blocks, of_row=(0, 0, 0))  # type: ignore[arg-type]
    with gradient_checkpointing(base.model, checkpointed):
        target_losses(base.model, base.batch(rows, prefixes, layout), prefixes).sum().backward()  # type: ignore[arg-type]

    key_2, value_2 = (tensor.detach().clone().requires_grad_() for tensor in (key, value))
    layers = list(zip(key_2, value_2, strict=True))
    for row in rows:
        token_losses(base.model, row.source_ids, row.target_ids, layers).sum().backward()
    torch.testing.assert_close(key.grad, key_2.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(value.grad, value_2.grad, rtol=1e-5, atol=1e-5)
    assert (key.grad.flatten(2).norm(dim=2) > 0).all()
    assert (value.grad.flatten(2).norm(dim=2) > 0).all()


def test_no_parameter_of_the_base_gets_a_gradient(tiny_base: BaseModel) -> None:
    rows, _ = encode(random_examples(2), tiny_base.tokenizer, tiny_base.template)
    key = torch.zeros(1, 3, 2, 4, 8, requires_grad=True)
    prefixes = PrefixBatch({"decoder": StreamBlock(key, key.clone(), (4,))}, (0, 0))
    target_losses(tiny_base.model, tiny_base.batch(rows, prefixes, "flat"), prefixes).sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in tiny_base.model.parameters())


def test_checkpointing_leaves_the_model_as_it_was(tiny_base: BaseModel) -> None:
    before = [type(m).forward for m in tiny_base.model.modules()]
    with gradient_checkpointing(tiny_base.model):
        pass
    assert [m.forward.__func__ for m in tiny_base.model.modules()] == before


def test_fully_padded_queries_do_not_make_nan(base: BaseModel) -> None:
    short, long = (
        random_examples(1, shortest=3, longest=3)[0],
        random_examples(1, seed=2, shortest=40, longest=40)[0],
    )
    for layout in ("left", "right"):
        losses = base.token_losses([short, long], [None, random_prefix(base, 3)], layout=layout)  # type: ignore[arg-type]
        assert all(torch.isfinite(row).all() for row in losses)


def test_prefix_stays_visible_under_a_sliding_window() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=4,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    base = BaseModel(MistralForCausalLM(config), byte_tokenizer(), name="tiny-mistral")
    prefix = random_prefix(base, 3)
    # In one layer a token sees a prefix directly or not at all: 30 tokens in, far beyond the window.
    ids = torch.randint(1, VOCABULARY, (1, 30))
    stacked = PrefixBatch.stack([prefix], base.device)
    with torch.no_grad():
        plain = base.model(input_ids=ids, position_ids=torch.arange(3, 33)[None], use_cache=False).logits[
            0, -1
        ]
        with attention_context(AttentionContext(prefixes=stacked)):
            seen = base.model(input_ids=ids, position_ids=torch.arange(3, 33)[None], use_cache=False).logits[
                0, -1
            ]
    assert (plain - seen).abs().max() > 0.01


def test_soft_capped_attention_takes_the_eager_kernel() -> None:
    from transformers import Gemma2Config

    class WithSdpa:
        _supports_sdpa = True

    class WithoutSdpa:
        _supports_sdpa = False

    assert choose_kernel(Gemma2Config(attn_logit_softcapping=50.0), WithSdpa) == "eager"
    assert choose_kernel(Gemma2Config(attn_logit_softcapping=None), WithSdpa) == "sdpa"
    assert choose_kernel(Gemma2Config(attn_logit_softcapping=None), WithoutSdpa) == "eager"
