"""A model of 16-bit weights computed with in float32: the numbers of its widened copy, without that copy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from foreword.base import float32
from foreword.base.float32 import in_float32
from support.architectures.decoder_only import DECODER_ONLY_WORKING
from support.architectures.encoder_decoder import ENCODER_DECODER_WORKING

BY_TYPE = {each.model_type: each for each in DECODER_ONLY_WORKING + ENCODER_DECODER_WORKING}
IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.mark.parametrize("dtype", float32.HALVES, ids=str)
@pytest.mark.parametrize("model_type", ["gpt2", "mixtral", "gemma3n_text", "deepseek_v3", "t5"])
@torch.no_grad()
def test_the_numbers_are_those_of_the_same_weights_in_float32(
    model_type: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(float32, "PART", 100)  # several parts to a matrix
    model = BY_TYPE[model_type].model().to(dtype)
    inputs = {"input_ids": IDS} | ({"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {})
    with in_float32():
        found = model(**inputs).logits
    expected = model.float()(**inputs).logits
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@torch.no_grad()
def test_convolutions_and_buffers_in_sixteen_bits() -> None:
    layer = nn.Conv1d(3, 3, 2).to(torch.bfloat16)
    buffer = torch.zeros(1, 3, 4, dtype=torch.bfloat16)
    states = torch.rand(1, 3, 5)
    with in_float32():
        found = layer(states.to(torch.bfloat16))
        buffer += found
    expected = layer.float()(states)
    torch.testing.assert_close(found, expected)
    assert buffer.dtype == torch.bfloat16
    torch.testing.assert_close(buffer, expected.to(torch.bfloat16))


class Largest(TorchDispatchMode):
    """Numbers of the largest float32 tensor that any operation made."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.dtype == torch.float32:
            self.numbers = max(self.numbers, made.numel())
        return made


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
@torch.no_grad()
def test_no_weight_is_in_float32_as_a_whole(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = BY_TYPE[model_type].model().to(torch.bfloat16)
    monkeypatch.setattr(float32, "PART", 512)
    with Largest() as largest, in_float32():
        model(input_ids=IDS)
    matrices = [p.numel() for p in model.parameters() if p.dim() > 1]
    assert 512 <= largest.numbers < min(n for n in matrices if n > 512), sorted(matrices)
