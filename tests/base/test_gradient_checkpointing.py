"""Gradient checkpointing: on in the threads that ask for it, with accelerate's hooks, and nothing left behind."""

from __future__ import annotations

import copy
import threading
from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module

from foreword import BaseModel, Example, Prefix, train
from foreword.base.gradient_checkpointing import gradient_checkpointing
from foreword.base.loss import target_losses
from foreword.base.prefix_batch import PrefixBatch, StreamBlock
from foreword.encoding import encode
from foreword.errors import UnsupportedArchitecture
from support.stand_ins import byte_tokenizer, random_examples, tiny_llama

EXAMPLES = random_examples(4)


def trained(base: BaseModel, seed: int, *, checkpointed: bool = True) -> Prefix:
    return train(base, EXAMPLES, length=2, steps=6, seed=seed, gradient_checkpointing=checkpointed)


def test_threads_that_checkpoint_on_one_base_get_what_each_gets_alone(tiny_base: BaseModel) -> None:
    expected = {seed: trained(tiny_base, seed) for seed in range(3)}
    found: dict[int, Prefix] = {}
    begin = threading.Barrier(3)

    def run(seed: int) -> None:
        begin.wait()
        found[seed] = trained(tiny_base, seed)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found.keys() == expected.keys()
    for seed, prefix in expected.items():
        assert all(torch.equal(found[seed].tensors[name], prefix.tensors[name]) for name in prefix.tensors)


def layer_passes(base: BaseModel) -> int:
    """How often the first layer computes in a pass and its gradient."""
    passes: list[int] = []
    handle = base.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: passes.append(1))
    rows, _ = encode(EXAMPLES, base.tokenizer, base.template)
    key = torch.zeros(1, 3, 2, 2, 8, requires_grad=True)
    prefixes = PrefixBatch({"decoder": StreamBlock(key, key.clone(), (2,))}, (0,) * len(rows))
    target_losses(base.model, base.batch(rows, prefixes, "flat"), prefixes).sum().backward()
    handle.remove()
    return len(passes)


def test_layers_compute_twice_in_the_thread_that_asks_for_it_and_nowhere_else(tiny_base: BaseModel) -> None:
    counts: list[int] = []
    with gradient_checkpointing(tiny_base.model):
        thread = threading.Thread(target=lambda: counts.append(layer_passes(tiny_base)))
        thread.start()
        thread.join()
        counts.append(layer_passes(tiny_base))
        with gradient_checkpointing(tiny_base.model, enabled=False):
            counts.append(layer_passes(tiny_base))
    counts.append(layer_passes(tiny_base))
    assert counts == [1, 2, 1, 1]


def test_nothing_that_is_left_behind_changes_a_model(tiny_base: BaseModel) -> None:
    layer = tiny_base.model.model.layers[0]
    kind = type(layer)
    with gradient_checkpointing(tiny_base.model), gradient_checkpointing(tiny_base.model):
        assert "forward" not in vars(layer)
    assert "forward" not in vars(layer)
    assert isinstance(layer, kind)
    assert (type(layer).__name__, type(layer).__module__) == (kind.__name__, kind.__module__)
    alike = copy.deepcopy(tiny_base.model)
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(alike(ids).logits, tiny_llama().eval()(ids).logits)


def test_hooks_of_accelerate_run_in_both_passes_and_stay() -> None:
    calls: list[str] = []

    class Counting(AlignDevicesHook):
        def pre_forward(self, module: torch.nn.Module, *args: object, **kwargs: object) -> object:
            calls.append(type(module).__name__)
            return super().pre_forward(module, *args, **kwargs)

    model = tiny_llama()
    for layer in model.model.layers:
        add_hook_to_module(layer, Counting(execution_device="cpu"))
    base = BaseModel(model, byte_tokenizer(), name="hooked")
    calls.clear()
    prefix = trained(base, 0)
    assert len(calls) == 2 * 3 * 6 + 3  # two passes of three layers in six steps, and the pass of the start
    plain = trained(BaseModel(tiny_llama(), byte_tokenizer(), name="plain"), 0, checkpointed=False)
    for name, tensor in plain.tensors.items():
        torch.testing.assert_close(prefix.tensors[name], tensor, rtol=1e-4, atol=1e-5)
    calls.clear()
    base.token_losses([Example("ab", "cd")])
    assert len(calls) == 3
    remove_hook_from_module(model, recurse=True)
    base.token_losses([Example("ab", "cd")])
    assert len(calls) == 3


def test_weights_that_accelerate_fetches_for_each_pass_are_there_in_the_second(tmp_path: Path) -> None:
    model = tiny_llama()
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    places |= {"model.layers.2": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path)
    assert next(model.model.layers[1].parameters()).device.type == "meta"
    away = trained(BaseModel(model, byte_tokenizer(), name="plain", folder=_folder(tmp_path)), 0)
    here = trained(BaseModel(tiny_llama(), byte_tokenizer(), name="plain"), 0)
    for name, tensor in here.tensors.items():
        torch.testing.assert_close(away.tensors[name], tensor, rtol=1e-4, atol=1e-5)


def _folder(tmp_path: Path) -> Path:
    """Where the fingerprint is read: weights that are fetched for each pass are nowhere in memory."""
    tiny_llama().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_model_without_layers_that_can_be_checkpointed_is_refused() -> None:
    with (
        pytest.raises(UnsupportedArchitecture, match="no layers that can be checkpointed"),
        gradient_checkpointing(torch.nn.Linear(1, 1)),
    ):
        pass
