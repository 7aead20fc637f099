"""What a GPU must compute as the CPU does: `make test-gpu`. Where there is none, every test here says so.

FOREWORD_TEST_DEVICE=cpu takes the CPU for the GPU, to see that the tests themselves run; that measures nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch

from foreword import BaseModel
from support.architectures.decoder_only import DECODER_ONLY_WORKING
from support.architectures.encoder_decoder import ENCODER_DECODER_WORKING
from support.stand_ins import byte_tokenizer

ARCHITECTURES = {each.model_type: each for each in (*DECODER_ONLY_WORKING, *ENCODER_DECODER_WORKING)}


@pytest.fixture(scope="session")
def device() -> torch.device:
    if (chosen := os.environ.get("FOREWORD_TEST_DEVICE")) is not None:
        return torch.device(chosen)
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: not measured on a GPU")
    return torch.device("cuda", torch.cuda.current_device())


Made = Callable[..., BaseModel]


@pytest.fixture(scope="session")
def base_of() -> Made:
    """A tiny model of an architecture, where and in which type it is wanted; always the same weights."""

    def make(
        model_type: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> BaseModel:
        model = ARCHITECTURES[model_type].model().to(device, dtype)
        return BaseModel(model, byte_tokenizer(), name=model_type)

    return make
