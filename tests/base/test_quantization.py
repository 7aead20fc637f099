"""Quantised base models: what is refused and asked for without bitsandbytes; losses, gradients, files with it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from foreword import BaseModel, Prefix, generate, train
from foreword.base import loading
from foreword.base.gradient_checkpointing import gradient_checkpointing
from foreword.base.loss import detect_linear_head, plain_head, target_losses
from foreword.base.prefix_batch import PrefixBatch
from foreword.base.prepacked_linear import PrepackedLinear, enable_prepacking, is_prepared
from foreword.errors import CheckpointMismatch, UsageError
from foreword.research.baselines.registry import methods_named
from foreword.research.experiments import checks
from foreword.serving import config as configuration
from support.baselines_settings import setting_of
from support.saved_bases import save_tiny
from support.stand_ins import random_examples, random_prefix, tiny_llama
from support.trials import small_plan, small_splits

KINDS = ("int8", "nf4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sizes in blocks of 64, which nf4 has one scale for."""
    return save_tiny(tmp_path_factory.mktemp("bases") / "tiny", hidden_size=64, intermediate_size=128)


@pytest.fixture
def installed() -> Any:
    return pytest.importorskip("bitsandbytes", reason="the extra `quantization` is not installed")


@pytest.fixture(params=KINDS)
def quantized(request: pytest.FixtureRequest, folder: Path, installed: Any) -> BaseModel:
    return BaseModel.load(folder, device="cpu", quantization=request.param)


# -- without the package -----------------------------------------------------------------------


def test_settings_are_those_of_the_name() -> None:
    assert loading.settings_of("int8", torch.bfloat16) == {"load_in_8bit": True}
    nf4 = loading.settings_of("nf4", torch.bfloat16)
    assert nf4["load_in_4bit"] is True
    assert nf4["bnb_4bit_quant_type"] == "nf4"
    assert nf4["bnb_4bit_compute_dtype"] == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "device", "said"),
    [
        ("nf3", "cpu", "'nf3'; expected int8, nf4 or None"),
        ("nf4", "mps", "the device is mps"),
        ("nf4", torch.device("mps", 0), "the device is mps:0"),
        ("int8", "cuda:1", "pip install 'foreword[quantization]'"),
        ("nf4", "balanced", "pip install 'foreword[quantization]'"),
    ],
)
def test_what_can_not_work_is_said_before_the_model_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, name: Any, device: Any, said: str
) -> None:
    monkeypatch.setattr(loading, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(UsageError) as caught:
        BaseModel.load("no-such-model", device=device, quantization=name)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "fp4"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
    ],
)
def test_files_that_are_quantised_are_placed_while_read_and_not_quantised_again(
    said: dict[str, Any], kept: str
) -> None:
    config = SimpleNamespace(quantization_config=said)
    assert loading.existing_quantization(config) == kept
    assert loading.loading_options(None, config, "cuda:1", torch.float32) == {"device_map": "cuda:1"}
    with pytest.raises(UsageError, match=f"quantised already \\({kept}\\)"):
        loading.loading_options("int8", config, "cpu", torch.float32)


def test_a_plain_model_is_loaded_and_counted_as_ever(tiny_base: BaseModel) -> None:
    assert loading.loading_options(None, tiny_base.model.config, "cuda", torch.float32) == {}
    assert tiny_base.quantization is None
    names = [name for name, _ in loading.tensors_of(tiny_base.model)]
    assert names == [name for name, _ in tiny_base.model.named_parameters()]


class Rounded(nn.Parameter):
    """A weight that says it is float32, and is not what it says."""


def test_a_quantised_weight_in_a_plain_layer_is_neither_packed_nor_read() -> None:
    model = tiny_llama().eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight = Rounded(module.weight.data, requires_grad=False)
    assert enable_prepacking(model) == 0
    assert not is_prepared(model)
    detect_linear_head(model)
    assert plain_head(model) is None  # its product goes through the layer


def test_the_server_takes_it_for_its_own_engine_only() -> None:
    chosen = configuration.read(None, {"FOREWORD_SERVE_QUANTIZATION": "nf4"}, {})
    assert chosen.quantization == "nf4"
    assert configuration.read(None, {}, {}).quantization is None
    with pytest.raises(UsageError, match="the local engine's"):
        configuration.Configuration(engine="vllm", quantization="nf4")


# -- with it, on the CPU -----------------------------------------------------------------------


def plain_weights_of(base: BaseModel, bnb: Any) -> dict[str, torch.Tensor]:
    """By hand (int8) or by bitsandbytes' function (nf4): the numbers that the layers stand for."""
    weights = {}
    for name, module in base.model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            weight = module.weight
            weights[name] = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
        elif isinstance(module, bnb.nn.Linear8bitLt):
            weights[name] = module.weight.data.float() * module.state.SCB[:, None] / 127
    return weights


def losses_and_gradient(base: BaseModel, prefix: Prefix, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a batch of rows under the prefix: the loss of each token, and what the prefix's keys get of their sum."""
    from foreword.encoding import encode_example

    rows = [encode_example(example, base.tokenizer, base.template)[0] for example in random_examples(4)]
    stacked = PrefixBatch.stack([prefix] * len(rows), base.device)
    assert stacked is not None
    key = stacked.blocks["decoder"].key_RLHPD.requires_grad_(True)
    with gradient_checkpointing(base.model, **options):
        losses_M = target_losses(base.model, base.batch(rows, stacked, "flat"), stacked)
        losses_M.sum().backward()
    assert key.grad is not None
    return losses_M.detach(), key.grad


def test_losses_and_gradients_are_those_of_the_rounded_weights(
    quantized: BaseModel, folder: Path, installed: Any
) -> None:
    plain = BaseModel.load(folder, device="cpu")
    weights = plain_weights_of(quantized, installed)
    layers = [module for module in plain.model.modules() if isinstance(module, PrepackedLinear)]
    assert len(weights) == len(layers) - 1  # all but the head
    for name, weight in weights.items():
        layer = plain.model.get_submodule(name)
        assert 0 < float((layer.weight - weight).norm() / layer.weight.norm()) < 0.15
        layer.weight.copy_(weight)
    prefix = random_prefix(quantized, 3)
    for enabled in (False, True):
        expected = losses_and_gradient(plain, prefix, enabled=enabled)
        found = losses_and_gradient(quantized, prefix, enabled=enabled)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_training_lowers_the_loss_and_changes_no_weight(quantized: BaseModel) -> None:
    examples = random_examples(4)
    before = quantized.weights_checksum()
    start = torch.cat(quantized.token_losses(examples)).mean()
    prefix = train(quantized, examples, length=4, steps=20, batch_size=4, seed=0)
    assert torch.cat(quantized.token_losses(examples, prefix)).mean() < start - 0.3
    assert quantized.weights_checksum() == before


def test_checksum_sees_the_scales(quantized: BaseModel, installed: Any) -> None:
    before = quantized.weights_checksum()
    layer = quantized.model.get_submodule("model.layers.0.mlp.up_proj")
    scales = layer.state.SCB if quantized.quantization == "int8" else layer.weight.quant_state.absmax
    scales[0] += 1
    assert quantized.weights_checksum() != before


def test_row_is_independent_of_its_neighbours(quantized: BaseModel) -> None:
    examples = random_examples(5)
    prefixes = [random_prefix(quantized, 3), None, random_prefix(quantized, 5, seed=1), None, None]
    together = quantized.token_losses(examples, prefixes)
    for example, prefix, losses in zip(examples, prefixes, together, strict=True):
        torch.testing.assert_close(losses, quantized.token_losses([example], prefix)[0], rtol=0, atol=1e-4)
    texts = generate(quantized, [e.source for e in examples], prefixes, max_new_tokens=8)
    alone = [
        generate(quantized, [e.source], p, max_new_tokens=8)[0]
        for e, p in zip(examples, prefixes, strict=True)
    ]
    assert texts == alone


def test_prefixes_fit_with_and_without(quantized: BaseModel, folder: Path, tmp_path: Path) -> None:
    plain = BaseModel.load(folder, device="cpu")
    assert quantized.fingerprint == plain.fingerprint
    examples = random_examples(3)
    for number, (trained_on, used_on) in enumerate([(quantized, plain), (plain, quantized)]):
        file = tmp_path / f"{number}.prefix"
        train(trained_on, examples, length=3, steps=2, batch_size=3).save(file)
        losses = used_on.token_losses(examples, Prefix.load(file))
        assert all(bool(row.isfinite().all()) for row in losses)


def test_a_checkpoint_goes_on_under_the_same_weights_only(
    quantized: BaseModel, folder: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"length": 3, "steps": 2, "batch_size": 3, "checkpoint_dir": tmp_path}
    train(quantized, random_examples(3), **options)
    with pytest.raises(CheckpointMismatch):
        train(BaseModel.load(folder, device="cpu"), random_examples(3), **options)


def test_it_says_what_it_is(quantized: BaseModel, folder: Path) -> None:
    plain = BaseModel.load(folder, device="cpu")
    assert f"{quantized.quantization} in float32" in repr(quantized)
    assert quantized.model.num_parameters() == plain.model.num_parameters()
    assert quantized.dtype == torch.float32


@pytest.mark.parametrize("name", ["fine-tuning", "top-2"])
def test_fine_tuning_is_refused(quantized: BaseModel, name: str) -> None:
    (method,) = methods_named([name])
    with pytest.raises(UsageError, match="quantised"):
        method.begin(setting_of(quantized))
    with pytest.raises(UsageError, match=f"{name}: .*quantised"):
        checks.check(quantized, small_splits(), small_plan(methods=(method,)))


def test_lora_trains_beside_the_same_weights(quantized: BaseModel) -> None:
    pytest.importorskip("peft")
    (method,) = methods_named(["lora-8"])
    setting = setting_of(quantized)
    adapter = method.begin(setting)
    adapter.losses(setting.rows).mean().backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in adapter.parameters)
    ours, theirs = (
        model.get_submodule("model.layers.0.mlp.up_proj") for model in (quantized.model, adapter.base.model)
    )
    assert ours.weight.data_ptr() == theirs.weight.data_ptr()


def test_rows_stay_apart_under_the_hooks_that_spread_a_model(folder: Path, installed: Any) -> None:
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    from foreword.base.int8_linear import RoundedLinear, use_rounded_linear

    torch.manual_seed(0)
    layer = installed.nn.Linear8bitLt(64, 64, bias=False, has_fp16_weights=False)
    layer.weight = installed.nn.Int8Params(torch.randn(64, 64), requires_grad=False).to("cpu")
    add_hook_to_module(layer, AlignDevicesHook())
    assert use_rounded_linear(nn.ModuleList([layer])) == 1
    assert isinstance(layer, RoundedLinear)
    x = torch.randn(2, 64)
    x[1, 3] = 100  # bitsandbytes would now take this column of both rows apart
    torch.testing.assert_close(layer(x)[:1], layer(x[:1]), rtol=1e-5, atol=1e-5)
