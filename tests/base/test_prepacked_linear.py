"""Packed weights: the same products, forward and backward, and never those of an older weight."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from foreword import BaseModel, generate, generation, train
from foreword.base import prepacked_linear
from foreword.base.prepacked_linear import PrepackedLinear, can_prepack, enable_prepacking, prepacked_weights
from support.stand_ins import byte_tokenizer, random_examples, tiny_llama

if not can_prepack():
    pytest.skip("this build of torch has no oneDNN kernels for packed weights", allow_module_level=True)


@pytest.fixture(autouse=True)
def with_packed_weights() -> Iterator[None]:
    with prepacked_weights(True):
        yield


def layers(bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    """A plain layer, and a packed one with equal weights."""
    torch.manual_seed(0)
    plain = nn.Linear(40, 24, bias=bias).requires_grad_(False)
    packed = copy.deepcopy(plain)
    assert enable_prepacking(packed) == 1
    return plain, packed


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(40,), (1, 40), (7, 40), (3, 5, 40), (0, 40), (2, 0, 40)])
def test_products_and_gradients_equal_the_plain_layers(bias: bool, shape: tuple[int, ...]) -> None:
    plain, packed = layers(bias)
    results = []
    for layer in (plain, packed):
        inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
        outputs = layer(inputs)
        outputs.sum().backward(retain_graph=True)  # a gradient without memory of its own
        (outputs * torch.arange(24)).sum().backward()
        with torch.no_grad():
            again = layer(inputs)
        results.append((outputs.detach(), inputs.grad, again))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_inputs_need_not_be_contiguous() -> None:
    plain, packed = layers()
    inputs = torch.randn(40, 6).t()
    torch.testing.assert_close(packed(inputs), plain(inputs), rtol=1e-5, atol=1e-5)


def test_products_may_be_changed_in_place() -> None:
    """Some architectures do, also where gradients flow."""
    plain, packed = layers()
    results = []
    for layer in (plain, packed):
        inputs = torch.ones(2, 3, 40, requires_grad=True)
        outputs = layer(inputs)
        outputs.masked_fill_(outputs > 0, 0.0)
        outputs.square().sum().backward()
        results.append((outputs.detach(), inputs.grad))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_weight_that_changes_is_packed_anew() -> None:
    plain, packed = layers()
    inputs = torch.randn(3, 40)
    packed(inputs)
    for layer in (plain, packed):
        layer.weight.mul_(2)
    torch.testing.assert_close(packed(inputs), plain(inputs), rtol=1e-5, atol=1e-5)
    for layer in (plain, packed):
        layer.weight = nn.Parameter(torch.ones(24, 40), requires_grad=False)
    torch.testing.assert_close(packed(inputs), plain(inputs), rtol=1e-5, atol=1e-5)


def test_a_weight_that_is_trained_gets_its_gradient() -> None:
    _, packed = layers()
    packed.requires_grad_(True)
    packed(torch.ones(3, 40)).sum().backward()
    assert packed.weight.grad is not None
    assert torch.equal(packed.weight.grad, torch.full((24, 40), 3.0))


def test_copies_of_a_model_are_models_of_their_own() -> None:
    _, packed = layers()
    inputs = torch.randn(3, 40)
    before = packed(inputs)
    for twin in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert torch.equal(twin(inputs), before)
        twin.weight.zero_()
        assert torch.equal(twin(inputs), twin.bias.expand(3, 24))
    assert torch.equal(packed(inputs), before)


def test_other_types_than_the_weights_are_refused_as_ever() -> None:
    plain, packed = layers()
    for layer in (plain, packed):
        with pytest.raises(RuntimeError, match="dtype"):
            layer(torch.ones(3, 40, dtype=torch.float64))


def test_a_base_model_is_packed_and_its_weights_stay() -> None:
    model = tiny_llama()
    names, digest = list(model.state_dict()), {k: v.clone() for k, v in model.state_dict().items()}
    ids = torch.arange(1, 30)[None]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    base = BaseModel(model, byte_tokenizer(), name="tiny-llama")
    assert sum(isinstance(module, PrepackedLinear) for module in model.modules()) == 3 * 7 + 1
    with torch.no_grad():
        torch.testing.assert_close(base.model(input_ids=ids).logits, expected, rtol=1e-5, atol=1e-5)
    assert list(model.state_dict()) == names
    assert all(torch.equal(model.state_dict()[name], digest[name]) for name in names)


def copies(base: BaseModel) -> int:
    found = [module.prepacked for module in base.model.modules() if isinstance(module, PrepackedLinear)]
    return sum(packed.copy is not None for packed in found)


def test_generation_packs_where_it_pays_and_training_never(monkeypatch: pytest.MonkeyPatch) -> None:
    with prepacked_weights(False):
        base = BaseModel(tiny_llama(), byte_tokenizer(), name="tiny-llama")
        train(base, random_examples(6), length=3, steps=4, batch_size=3, seed=1)
        assert copies(base) == 0
        for pays in (False, True):  # generation decides for itself
            monkeypatch.setattr(generation, "prepacking_pays", lambda rows, pays=pays: pays)
            generate(base, ["ab"], max_new_tokens=2)
            assert copies(base) == (3 * 7 + 1) * pays


def test_packed_weights_end_with_the_block() -> None:
    plain, packed = layers()
    inputs = torch.randn(3, 40)
    with prepacked_weights(False):
        assert torch.equal(packed(inputs), plain(inputs))
    assert packed.prepacked.copy is None


def test_what_can_not_be_packed_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert enable_prepacking(nn.Linear(4, 4)) == 0  # trained
    assert enable_prepacking(nn.Linear(4, 4, dtype=torch.float64).requires_grad_(False)) == 0
    assert enable_prepacking(nn.Conv1d(4, 4, 1).requires_grad_(False)) == 0
    monkeypatch.setattr(prepacked_linear, "MOST_BYTES", 63)
    layer = nn.Linear(4, 4).requires_grad_(False)
    assert enable_prepacking(layer) == 0
    assert type(layer) is nn.Linear
