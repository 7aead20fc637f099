"""Sizes of passes from a GPU's memory, by hand; without one, the constants of before."""

from __future__ import annotations

import sys

import pytest
import torch

from foreword import BaseModel, train_many
from foreword.base import loss
from foreword.base.device_memory import free_memory, logits_at_once, tokens_at_once
from foreword.training import loop
from support.stand_ins import random_examples

CPU, GPU = torch.device("cpu"), torch.device("cuda:1")
GB = 10**9


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A GPU with 20 GB, of which torch holds 7 and uses 5, and others use 3."""
    sizes = {"mem_get_info": (10 * GB, 20 * GB), "memory_reserved": 7 * GB, "memory_allocated": 5 * GB}
    for name, value in sizes.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    return monkeypatch


def test_what_torch_holds_and_nothing_uses_is_free(gpu: pytest.MonkeyPatch) -> None:
    assert free_memory(GPU) == 12 * GB
    assert free_memory(CPU) is None
    assert free_memory(torch.device("mps")) is None


def test_logits_take_an_eighth_of_the_free_memory(gpu: pytest.MonkeyPatch) -> None:
    assert logits_at_once(GPU) == 12 * GB // 8 // 12 == 125_000_000
    gpu.setattr(torch.cuda, "mem_get_info", lambda device: (80 * GB, 80 * GB))
    assert logits_at_once(GPU) == 1 << 27
    gpu.setattr(torch.cuda, "mem_get_info", lambda device: (-2 * GB + 1000, 80 * GB))
    assert logits_at_once(GPU) == 1 << 20
    assert logits_at_once(CPU) is None


def test_tokens_take_half_of_the_free_memory(tiny_base: BaseModel, gpu: pytest.MonkeyPatch) -> None:
    """Three layers of hidden size 32 in float32: a token is 17 * 3 * 32 * 4 = 6,528 bytes with a gradient."""
    model = tiny_base.model
    gpu.setattr(torch.cuda, "mem_get_info", lambda device: (-2 * GB + 10**8, 20 * GB))
    assert tokens_at_once(model, GPU, gradient=True) == 10**8 // 2 // 6528 == 7659
    assert tokens_at_once(model, GPU, gradient=True, checkpointed=True) == 10**8 // 2 // (20 * 32 * 4)
    assert tokens_at_once(model, GPU, gradient=False) == 10**8 // 2 // (34 * 32 * 4)
    gpu.setattr(torch.cuda, "mem_get_info", lambda device: (20 * GB, 20 * GB))
    assert tokens_at_once(model, GPU, gradient=True) == 65536
    gpu.setattr(torch.cuda, "mem_get_info", lambda device: (-2 * GB + 1000, 20 * GB))
    assert tokens_at_once(model, GPU, gradient=True) == 2048
    assert tokens_at_once(model, CPU, gradient=True) is None


def test_passes_and_parts_have_these_sizes_on_a_gpu_and_the_constants_on_a_cpu(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[int | None]] = {"evaluation": [], "training": []}
    batches, parts = loop.batches_by_length, loop._parts
    monkeypatch.setattr(
        loop,
        "batches_by_length",
        lambda rows, most, ahead: (seen["evaluation"].append(most), batches(rows, most, ahead))[1],
    )
    monkeypatch.setattr(loop, "_parts", lambda *given: (seen["training"].append(given[2]), parts(*given))[1])
    rows = random_examples(3)

    def run(isolated: bool = False, **more: int) -> None:
        train_many(tiny_base, {"a": rows}, dev={"a": rows}, length=2, steps=1, isolated=isolated, **more)  # type: ignore[arg-type]

    run()
    run(isolated=True)
    run(isolated=True, max_batch_tokens=30)
    assert seen == {"evaluation": [2048] * 6, "training": [2048, None, 30]}
    for module in (loop, sys.modules["foreword.training.train_many"]):  # the package's name is the function
        monkeypatch.setattr(module, "tokens_at_once", lambda *_, gradient, **__: 4000 if gradient else 9000)
    run()
    assert (seen["evaluation"][6:], seen["training"][3:]) == ([9000] * 2, [4000])


def test_a_loss_has_the_parts_that_fit_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    head = torch.nn.Linear(2, 10).requires_grad_(False)
    hidden, targets = torch.ones(8, 2), torch.zeros(8, dtype=torch.long)
    assert [len(part) for part, _ in loss._parts(head, hidden, targets)] == [8]
    monkeypatch.setattr(loss, "logits_at_once", lambda device: 30)
    assert [len(part) for part, _ in loss._parts(head, hidden, targets)] == [3, 3, 2]
