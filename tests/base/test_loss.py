"""Losses from hidden states: in parts as at once, and only where the head alone makes the logits."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import Gemma2Config, Gemma2ForCausalLM

from foreword import BaseModel, train
from foreword.base import loss
from foreword.base.loss import plain_head
from support.stand_ins import byte_tokenizer, random_examples, tiny_llama

ROWS, SIZE, VOCABULARY = 11, 6, 40


def head_and_states(dtype: torch.dtype) -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    head = nn.Linear(SIZE, VOCABULARY, dtype=dtype).requires_grad_(False)
    states = torch.randn(ROWS, SIZE).to(dtype).requires_grad_()
    return head, states, torch.randint(VOCABULARY, (ROWS,))


@pytest.mark.parametrize("at_once", [1, VOCABULARY, 3 * VOCABULARY, 1000 * VOCABULARY])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_losses_and_gradients_are_those_of_all_logits_at_once(
    monkeypatch: pytest.MonkeyPatch, at_once: int, dtype: torch.dtype, tolerance: float
) -> None:
    monkeypatch.setattr(loss, "PART", at_once)
    head, states, targets = head_and_states(dtype)
    weights = torch.rand(ROWS)  # owners of a batch weigh their losses apart
    found = loss.head_losses(head, states, targets)
    (gradient,) = torch.autograd.grad((found * weights).sum(), states)
    expected = cross_entropy(head(states).float(), targets, reduction="none")
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), states)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=tolerance, atol=tolerance)
    with torch.no_grad():
        torch.testing.assert_close(loss.head_losses(head, states, targets), expected)


def test_no_more_logits_at_once_than_a_part_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "PART", 3 * VOCABULARY)
    head, states, targets = head_and_states(torch.float32)
    rows: list[int] = []
    head.register_forward_hook(lambda module, given, made: rows.append(len(made)))
    loss.head_losses(head, states, targets)
    assert rows == [3, 3, 3, 2]


def test_the_head_of_a_llama_is_plain_until_somebody_trains_it() -> None:
    model = tiny_llama()
    BaseModel(model, byte_tokenizer(), name="tiny-llama")
    assert plain_head(model) is model.lm_head
    model.lm_head.weight.requires_grad_()
    assert plain_head(model) is None


def test_capped_logits_are_left_to_their_model() -> None:
    """Its losses would differ: a cap of 1 keeps all logits between -1 and 1."""
    config = Gemma2Config(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=1.0,
    )
    torch.manual_seed(0)
    base = BaseModel(Gemma2ForCausalLM(config), byte_tokenizer(), name="capped")
    assert plain_head(base.model) is None
    example = random_examples(1)[0]
    (losses,) = base.token_losses([example])
    ids = base.tokenizer(f"{example.source}{base.template.separator}{example.target}")["input_ids"]
    logits = base.model(torch.tensor([ids])).logits[0].float()  # by the model alone
    assert logits.abs().max() <= 1
    expected = cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
    of_target = len(losses) - 1  # without the end token, which the text above lacks
    torch.testing.assert_close(losses[:of_target], expected[-of_target:], rtol=1e-5, atol=1e-5)


def test_training_is_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    prefixes = []
    for part in (1 << 23, 300):
        monkeypatch.setattr(loss, "PART", part)
        base = BaseModel(tiny_llama(), byte_tokenizer(), name="tiny-llama")
        prefixes.append(train(base, random_examples(6), length=3, steps=3, batch_size=3, seed=1))
    one, two = prefixes
    for name, tensor in one.tensors.items():
        torch.testing.assert_close(two.tensors[name], tensor, rtol=1e-3, atol=1e-4)
