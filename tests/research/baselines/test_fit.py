"""The harness: what `train` does, for any method, and never a change of the shared weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from foreword import BaseModel, train
from foreword.encoding import encode
from foreword.errors import TrainingDiverged
from foreword.evaluation import token_loss
from foreword.research.baselines.fit import fit, mean_loss
from foreword.research.baselines.registry import METHODS, RATE, VARIANTS, Method
from foreword.training.batch_sampler import BatchSampler
from foreword.training.train import make_settings
from support import by_hand
from support.baselines_settings import roomy_base, setting_of
from support.stand_ins import random_examples

DEV = random_examples(6, seed=1)


def started(base: BaseModel, name: str, **settings: Any) -> Any:
    """An adapter of the method, its rows, dev rows, and settings."""
    method: Method = (METHODS | VARIANTS)[name]
    inputs = setting_of(base, method.default)
    adapter = method.begin(inputs)
    dev, _ = encode(DEV, base.tokenizer, adapter.template)
    given = {"steps": 8, "batch_size": 4, "evaluate_every": 2, "learning_rate": method.default.get(RATE)}
    return adapter, inputs.rows, dev, make_settings(**{**given, **settings})


def test_a_prefix_comes_out_as_train_makes_it(tiny_base: BaseModel) -> None:
    options = {"steps": 8, "batch_size": 4, "evaluate_every": 2, "learning_rate": 0.3}
    expected = train(tiny_base, random_examples(12), dev=DEV, length=4, **options)
    adapter, rows, dev, settings = started(tiny_base, "prefix", **options)
    found = fit(tiny_base, adapter, rows, dev, settings)
    assert (found.step, found.dev_loss) == (expected.origin.steps, pytest.approx(expected.origin.dev_loss))
    for name, tensor in adapter.finish().prefix.tensors.items():
        torch.testing.assert_close(tensor, expected.tensors[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [*METHODS, *VARIANTS])
def test_every_method_leaves_the_base_as_it_was_and_measures_what_the_evaluation_measures(name: str) -> None:
    base = roomy_base()
    weights, random_state = base.weights_checksum(), torch.get_rng_state()
    plain = token_loss(base, DEV).mean
    adapter, rows, dev, settings = started(base, name, steps=4)
    found = fit(base, adapter, rows, dev, settings)
    subject = adapter.finish()
    evaluated = token_loss(subject.base, DEV, subject.prefix, template=subject.template)
    assert found.dev_loss == pytest.approx(evaluated.mean, rel=1e-5)
    if adapter.parameters:
        assert found.dev_loss == min(loss for step, loss in found.curve.items() if step)
        assert found.dev_loss != found.curve[0]
        assert subject.trained > 0
    assert base.weights_checksum() == weights
    assert token_loss(base, DEV).mean == plain
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("name", ["fine-tuning", "top-2", "lora", "lora-8"])
def test_before_the_first_step_and_at_a_rate_of_nothing_weights_are_the_base(
    tiny_base: BaseModel, name: str
) -> None:
    expected = token_loss(tiny_base, DEV).mean
    adapter, rows, dev, settings = started(tiny_base, name, learning_rate=1e-30)
    assert mean_loss(adapter, dev) == pytest.approx(expected, rel=1e-6)
    found = fit(tiny_base, adapter, rows, dev, settings)
    assert list(found.curve.values()) == pytest.approx([expected] * 5, rel=1e-6)


@pytest.mark.parametrize("name", ["fine-tuning", "lora-8", "adapter"])
def test_weights_in_a_subject_change_what_it_says_and_not_what_the_base_says(
    tiny_base: BaseModel, name: str
) -> None:
    before = token_loss(tiny_base, DEV).mean
    adapter = METHODS[name].begin(setting_of(tiny_base))
    with torch.no_grad():
        for parameter in adapter.parameters:
            parameter.add_(0.1)
    subject = adapter.finish()
    assert token_loss(subject.base, DEV).mean != pytest.approx(before, rel=1e-3)
    assert token_loss(tiny_base, DEV).mean == before


def test_one_step_of_fine_tuning_is_adam_by_hand(tiny_base: BaseModel) -> None:
    rate, clip = 0.01, 0.5
    adapter, rows, dev, settings = started(
        tiny_base, "fine-tuning", steps=1, learning_rate=rate, max_grad_norm=clip, warmup=0
    )
    model = copy.deepcopy(tiny_base.model).requires_grad_(True)
    batch = [rows[i] for i in BatchSampler([r.tokens for r in rows], 4, 0, by_length=False).batch(0)]
    losses = [by_hand.token_losses(model, row.source_ids, row.target_ids, None) for row in batch]
    torch.cat(losses).mean().backward()
    expected = {}
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    norm = sum(float(gradient.double().square().sum()) for gradient in gradients.values()) ** 0.5
    assert norm > clip  # so that clipping is tried, too
    for name, weight in model.named_parameters():
        gradient = gradients[name] * clip / (norm + 1e-6)
        # First step: both moments, corrected for their bias, are the gradient and its square.
        expected[name] = weight.detach() - rate * gradient / (gradient.abs() + 1e-8)
    fit(tiny_base, adapter, rows, dev, settings)
    for name, weight in adapter.base.model.named_parameters():
        certain = gradients[name].abs() > 1e-4  # where the gradient is noise, so is its sign
        torch.testing.assert_close(weight[certain], expected[name][certain], rtol=0, atol=rate / 50)


def test_methods_see_the_same_batches_in_the_same_order(tiny_base: BaseModel) -> None:
    def batches(name: str) -> list[Any]:
        adapter, rows, dev, settings = started(tiny_base, name)
        seen: list[Any] = []
        losses = adapter.losses
        adapter.losses = lambda given: (seen.append([row.target_ids for row in given]), losses(given))[1]
        fit(tiny_base, adapter, rows, dev, settings)
        return seen

    assert batches("prefix") == batches("fine-tuning") == batches("lora") == batches("peft-prefix")


def test_patience_ends_a_training_and_the_best_step_is_kept(tiny_base: BaseModel) -> None:
    adapter, rows, dev, settings = started(
        tiny_base, "fine-tuning", learning_rate=0.05, steps=60, evaluate_every=3, patience=2
    )
    found = fit(tiny_base, adapter, rows[:2], dev, settings)
    assert found.steps < 60
    assert found.step == found.steps - 6
    assert mean_loss(adapter, dev) == pytest.approx(found.curve[found.step], rel=1e-6)


def test_divergence_says_which_rate(tiny_base: BaseModel) -> None:
    adapter, rows, dev, settings = started(tiny_base, "fine-tuning", learning_rate=1e30, max_grad_norm=0)
    with pytest.raises(TrainingDiverged, match=r"lower learning rate than 1e\+30"):
        fit(tiny_base, adapter, rows, dev, settings)


def test_top_layers_are_the_last_ones(tiny_base: BaseModel) -> None:
    adapter, rows, dev, settings = started(tiny_base, "top-2")
    fit(tiny_base, adapter, rows, dev, settings)
    changed = {
        name.split(".")[2] if "layers." in name else name
        for (name, weight), old in zip(
            adapter.base.model.named_parameters(), tiny_base.model.parameters(), strict=True
        )
        if not torch.equal(weight, old)
    }
    assert changed == {"1", "2"}
