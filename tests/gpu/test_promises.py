"""The promises on a GPU: values of the CPU, rows that do not depend on each other, nothing waited for."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from foreword import BaseModel, Prefix, generate, train
from foreword.base import attention, kernels
from foreword.base.loss import target_losses
from foreword.base.prefix_batch import PrefixBatch
from foreword.cli import app
from foreword.encoding import encode
from foreword.training import TrainingStopped
from support.saved_bases import save_tiny
from support.stand_ins import random_examples, random_prefix

FEW = ["llama", "gpt2", "qwen3", "mistral", "gemma2", "gemma3_text", "deepseek_v3", "t5", "bart"]
GENERATING = ["llama", "mistral", "gemma3_text", "t5"]
Made = Callable[..., BaseModel]


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """float32 is float32: without TensorFloat-32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def mixed(base: BaseModel) -> list[Prefix | None]:
    return [random_prefix(base, n, seed=n) if n else None for n in (3, 0, 7, 3, 12)]


def losses(base: BaseModel, layout: Any = "flat") -> torch.Tensor:
    return torch.cat(base.token_losses(random_examples(5), mixed(base), layout=layout))


@pytest.mark.parametrize("layout", ["flat", "left"])
@pytest.mark.parametrize("model_type", FEW)
def test_losses_in_float32_are_those_of_the_cpu(
    model_type: str, layout: Any, device: torch.device, base_of: Made
) -> None:
    found, expected = (losses(base_of(model_type, place), layout) for place in (device, "cpu"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", FEW)
def test_losses_in_bfloat16_are_as_near_as_those_of_the_cpu(
    model_type: str, device: torch.device, base_of: Made
) -> None:
    expected = losses(base_of(model_type))
    noise = (losses(base_of(model_type, "cpu", torch.bfloat16)) - expected).norm()
    error = (losses(base_of(model_type, device, torch.bfloat16)) - expected).norm()
    assert error <= 2 * noise


def gradients(base: BaseModel) -> list[torch.Tensor]:
    rows, _ = encode(random_examples(5), base.tokenizer, base.template)
    leaves = [
        [part.to(base.device).requires_grad_() for part in random_prefix(base, n, seed=n).tensors.values()]
        for n in (4, 7)
    ]
    prefixes = PrefixBatch.from_tensors(
        [{"decoder": (key, value)} for key, value in leaves],
        (0, 1, None, 0, 0),
        ["prefix"] * 2,
        ["text-after-prefix"] * 2,
    )
    batch = base.batch(rows, prefixes, "flat")
    target_losses(base.model, batch, prefixes).sum().backward()
    assert all(part.grad is not None and part.grad.dtype == torch.float32 for leaf in leaves for part in leaf)
    return [part.grad.cpu() for leaf in leaves for part in leaf]


def distance(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    return float(torch.stack([(a - b).norm() for a, b in zip(one, other, strict=True)]).norm())


def test_gradients_are_those_of_the_cpu_and_in_bfloat16_no_mask_is_made(
    device: torch.device, base_of: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = gradients(base_of("llama"))
    size = distance(expected, [torch.zeros_like(each) for each in expected])
    assert distance(gradients(base_of("llama", device)), expected) <= 1e-4 * size
    noise = distance(gradients(base_of("llama", "cpu", torch.bfloat16)), expected)
    base = base_of("llama", device, torch.bfloat16)
    called: list[int] = []
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        assert kernels.varlen_attn is not None, "this torch has no variable-length attention"
        plain = kernels.varlen_attn
        monkeypatch.setattr(
            kernels, "varlen_attn", lambda *args, **more: called.append(1) or plain(*args, **more)
        )
        monkeypatch.setattr(attention, "sdpa_mask", None)  # whoever asks for a mask fails
    assert distance(gradients(base), expected) <= 2 * noise
    if called:
        assert len(called) == base.geometry.streams["decoder"].layers


@contextlib.contextmanager
def nobody_waits(device: torch.device) -> Iterator[None]:
    """torch raises an error at whatever makes Python wait for CUDA."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_training_pass_waits_for_nothing(device: torch.device, base_of: Made) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        base = base_of("llama", device, dtype)
        rows, _ = encode(random_examples(5), base.tokenizer, base.template)
        parts = [part.to(device).requires_grad_() for part in random_prefix(base, 4).tensors.values()]
        prefixes = PrefixBatch.from_tensors(
            [{"decoder": (parts[0], parts[1])}], (0,) * 5, ["prefix"], ["text-after-prefix"]
        )
        batch = base.batch(rows, prefixes, "flat")
        with nobody_waits(device):
            target_losses(base.model, batch, prefixes).sum().backward()


@pytest.mark.parametrize("model_type", GENERATING)
def test_greedy_texts_are_those_of_the_cpu_and_of_rows_alone(
    model_type: str, device: torch.device, base_of: Made
) -> None:
    prompts = ["one", "two", "a longer prompt", "b", "c"]
    texts = []
    for place in (device, "cpu"):
        base = base_of(model_type, place)
        texts.append(generate(base, prompts, mixed(base), max_new_tokens=12))
    assert texts[0] == texts[1]
    base = base_of(model_type, device)
    for prompt, prefix, text in zip(prompts, mixed(base), texts[0], strict=True):
        assert generate(base, [prompt], prefix, max_new_tokens=12) == [text]


def test_a_sampled_row_does_not_depend_on_its_neighbours(device: torch.device, base_of: Made) -> None:
    base = base_of("llama", device)
    sampling: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0.9, "top_p": 0.95, "seed": 3}
    prefixes = mixed(base)
    prompts = ["one", "two", "a longer prompt", "b", "c"]
    together = generate(base, prompts, prefixes, **sampling)
    assert together == generate(base, prompts, prefixes, **sampling)
    # The place of a row is its own: the first of two batches is so in both.
    assert generate(base, prompts[:2], prefixes[:2], **sampling) == together[:2]
    assert together != generate(base, prompts, prefixes, **{**sampling, "seed": 4})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stopped_run_goes_on_where_it_stopped(
    device: torch.device, base_of: Made, dtype: torch.dtype, tmp_path: Path
) -> None:
    base = base_of("llama", device, dtype)
    options: dict[str, Any] = {"length": 4, "steps": 8, "batch_size": 4, "warmup": 2}
    examples = random_examples(12)
    whole = train(base, examples, **options)

    def interrupt(progress: Any) -> None:
        if progress.step == 3 and progress.note is None:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingStopped):
        train(base, examples, **options, checkpoint_dir=tmp_path, on_progress=interrupt)
    resumed = train(base, examples, **options, checkpoint_dir=tmp_path)
    for name, tensor in whole.tensors.items():  # sums on a GPU have no fixed order
        torch.testing.assert_close(resumed.tensors[name], tensor, rtol=1e-2, atol=1e-2)
    before, after = (
        float(torch.cat(base.token_losses(examples, prefix)).mean()) for prefix in (None, resumed)
    )
    assert after < before


@pytest.mark.parametrize(
    "command",
    [
        ("machine", "--tokens", "64"),
        ("step", "--sizes", "4", "--no-peft"),
        ("step", "--sizes", "4"),
        ("generate", "--owners", "4", "--new-tokens", "4", "--no-peft"),
        ("memory", "--size", "4", "--no-peft"),
    ],
    ids=" ".join,
)
def test_the_bench_measures_the_gpu(device: torch.device, tmp_path: Path, command: tuple[str, ...]) -> None:
    base = save_tiny(tmp_path / "tiny", max_position_embeddings=512)
    place = ("--device", str(device), "--rounds", "1", "--json")
    done = CliRunner().invoke(app, ["bench", command[0], "--base", str(base), *command[1:], *place])
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["environment"]["dtype"] == ("bfloat16" if device.type == "cuda" else "float32")
    assert "GFLOP/s" in next(iter(told["limits"].values()))
