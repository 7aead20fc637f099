"""Bottleneck adapters: the logits and gradients that the adapters library computed (make_adapter_fixture.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from foreword import BaseModel
from foreword.encoding import EncodedExample
from foreword.research.baselines.bottleneck_adapter import bottleneck_adapter, equal_width
from foreword.research.baselines.registry import METHODS
from support.baselines_settings import setting_of
from support.stand_ins import LETTERS, byte_tokenizer

FIXTURE = Path(__file__).parent / "fixtures" / "bottleneck_adapter.safetensors"


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    return load_file(FIXTURE)


@pytest.fixture(scope="module")
def base(recorded: dict[str, torch.Tensor]) -> BaseModel:
    config = LlamaConfig(
        vocab_size=29,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(beginning(recorded, "base."))
    return BaseModel(model.eval(), byte_tokenizer(LETTERS), name="recorded-llama")


def beginning(tensors: dict[str, torch.Tensor], start: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def with_numbers(base: BaseModel, numbers: dict[str, torch.Tensor]) -> Any:
    """An adapter with the numbers that the library had."""
    adapter = bottleneck_adapter(setting_of(base), width=4)
    assert len(adapter.parameters) == len(numbers)
    with torch.no_grad():
        for index, parameter in enumerate(adapter.parameters):
            parameter.copy_(numbers[str(index)])
    return adapter


def test_logits_are_those_of_the_adapters_library(base: BaseModel, recorded: dict[str, torch.Tensor]) -> None:
    adapter = with_numbers(base, beginning(recorded, "adapter."))
    with torch.no_grad():
        without = base.model(input_ids=recorded["ids"], use_cache=False).logits
        found = adapter.base.model(input_ids=recorded["ids"], use_cache=False).logits
    torch.testing.assert_close(without, recorded["without"], atol=1e-5, rtol=0)
    torch.testing.assert_close(found, recorded["logits"], atol=1e-5, rtol=0)
    assert (recorded["logits"] - recorded["without"]).abs().max() > 1


def test_gradients_are_those_of_the_adapters_library(
    base: BaseModel, recorded: dict[str, torch.Tensor]
) -> None:
    adapter = with_numbers(base, beginning(recorded, "adapter."))
    rows = [EncodedExample((ids[0],), tuple(ids[1:])) for ids in recorded["ids"].tolist()]
    adapter.losses(rows).mean().backward()
    gradients = beginning(recorded, "gradient.")
    for index, parameter in enumerate(adapter.parameters):
        torch.testing.assert_close(parameter.grad, gradients[str(index)], rtol=1e-4, atol=1e-6)


def test_the_start_is_the_librarys(tiny_base: BaseModel) -> None:
    wide = bottleneck_adapter(setting_of(tiny_base, seed=3), width=32)
    weights = torch.cat([number.detach().flatten() for number in wide.parameters if number.dim() == 2])
    assert float(weights.std()) == pytest.approx(0.02, rel=0.05)  # init_weights="bert"
    assert abs(float(weights.mean())) < 0.001
    assert all(not number.any() for number in wide.parameters if number.dim() == 1)
    again, other = (bottleneck_adapter(setting_of(tiny_base, seed=seed), width=32) for seed in (3, 4))
    assert torch.equal(again.parameters[0], wide.parameters[0])
    assert not torch.equal(other.parameters[0], wide.parameters[0])


@pytest.mark.parametrize(("length", "width"), [(4, 1), (10, 4), (40, 19)])
def test_adapters_of_the_prefixs_size_are_no_larger_and_wider_ones_would_be(
    tiny_base: BaseModel, length: int, width: int
) -> None:
    # Of the tiny model: 3 layers, 32 wide; a virtual token has 3 * 2 * 2 * 8 numbers.
    assert equal_width(tiny_base, length) == width
    adapter = METHODS["adapter"].begin(setting_of(tiny_base, length=length))
    trained = sum(parameter.numel() for parameter in adapter.parameters)
    assert trained == 3 * (2 * 32 * width + width + 32)
    assert trained <= length * 96 < trained + 3 * (2 * 32 + 1)


def test_adapters_have_a_width_of_at_least_one(tiny_base: BaseModel) -> None:
    adapter = METHODS["adapter"].begin(setting_of(tiny_base, length=1))
    assert sum(parameter.numel() for parameter in adapter.parameters) == 3 * (2 * 32 + 1 + 32) > 96


def test_adapters_of_a_given_width_have_it(tiny_base: BaseModel) -> None:
    subject = bottleneck_adapter(setting_of(tiny_base), width=2).finish()
    assert subject.trained == subject.kept == 3 * (2 * 32 * 2 + 2 + 32)
