"""PEFT's methods in the harness: the losses, gradients and sizes of PEFT's own forward pass."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch

from foreword import BaseModel
from foreword.errors import UsageError
from foreword.research.baselines.peft import equal_rank
from foreword.research.baselines.registry import METHODS, VARIANTS, methods_named
from foreword.research.bench.peft import padded
from support.baselines_settings import rows_of, setting_of
from support.stand_ins import random_examples

CONFIGS = {
    "peft-prefix": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "peft-projection": peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=512
    ),
    "prompt-tuning": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "lora-8": peft.LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16),
}


def pefts_own(base: BaseModel, name: str, adapter: Any) -> Any:
    """PEFT's model on a plain copy, with the adapter's numbers in its trainable parameters."""
    model = copy.deepcopy(base.model)
    model.set_attn_implementation("sdpa")
    model = peft.get_peft_model(model, copy.deepcopy(CONFIGS[name]))
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter, ours in zip(trainable, adapter.parameters, strict=True):
            parameter.copy_(ours)
    return model, trainable


@pytest.mark.parametrize("name", CONFIGS)
def test_loss_and_gradients_are_those_of_pefts_own_forward(tiny_base: BaseModel, name: str) -> None:
    adapter = METHODS[name].begin(setting_of(tiny_base))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapter.parameters:  # LoRA's B begins at zero, and then its A has no gradient
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    model, trainable = pefts_own(tiny_base, name, adapter)
    rows = rows_of(tiny_base, random_examples(4, seed=5))
    expected = model(**padded(rows)).loss  # the mean over all target tokens of the batch
    expected.backward()
    loss = adapter.losses(rows).mean()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for ours, theirs in zip(adapter.parameters, trainable, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-6)


def test_a_prefix_of_pefts_begins_as_pefts_does(tiny_base: BaseModel) -> None:
    adapter = METHODS["peft-prefix"].begin(setting_of(tiny_base, seed=7))
    torch.manual_seed(7)
    model = peft.get_peft_model(copy.deepcopy(tiny_base.model), copy.deepcopy(CONFIGS["peft-prefix"]))
    assert torch.equal(adapter.parameters[0], model.prompt_encoder["default"].embedding.weight)


def test_what_is_kept_of_a_projection_is_the_prefix_alone(tiny_base: BaseModel) -> None:
    subject = METHODS["peft-projection"].begin(setting_of(tiny_base)).finish()
    assert subject.kept == tiny_base.geometry.parameters(4) < subject.trained


@pytest.mark.parametrize(("name", "vectors"), [("prompt-tuning", 4), ("embedding", 4), ("embedding-20", 20)])
def test_what_is_kept_of_embeddings_is_the_embeddings(tiny_base: BaseModel, name: str, vectors: int) -> None:
    subject = (METHODS | VARIANTS)[name].begin(setting_of(tiny_base)).finish()
    assert subject.kept == subject.trained == vectors * 32 < tiny_base.geometry.parameters(vectors)


def test_lora_of_the_prefixs_size_is_no_larger_and_one_more_rank_would_be(tiny_base: BaseModel) -> None:
    # Of the tiny model: q is 32 to 32, v is 32 to 16, in 3 layers; a virtual token has 3 * 2 * 2 * 8 numbers.
    per_rank = 3 * ((32 + 32) + (32 + 16))
    for length in (4, 10, 40):
        rank = equal_rank(tiny_base, length)
        assert rank == length * 96 // per_rank
        adapter = METHODS["lora"].begin(setting_of(tiny_base, length=length))
        trained = sum(parameter.numel() for parameter in adapter.parameters)
        assert trained == rank * per_rank <= length * 96 < trained + per_rank


def test_an_unknown_method_is_named_with_those_that_there_are() -> None:
    with pytest.raises(UsageError, match="no method is called 'lroa'; expected some of prefix, "):
        methods_named(["lroa"])


@pytest.mark.parametrize("name", ["ia3", "llama-adapter", "adapter-16"])
def test_methods_of_earlier_releases_say_that_they_are_gone(name: str) -> None:
    with pytest.raises(UsageError, match=f"the method '{name}' is gone"):
        methods_named(["prefix", name])
