"""Fixtures that all tests share; what they are made of is in support/stand_ins.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from foreword import BaseModel, Prefix
from foreword.prefix import BaseIdentity
from foreword.template import Template
from support.stand_ins import END, byte_tokenizer, tiny_llama

REPOSITORY = Path(__file__).parents[1]

pytest_plugins = ["support.stores"]

# Tiny models gain nothing from threads, and lose much where tests run beside other work: one each, here and in
# the processes that tests start.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def tiny_base() -> BaseModel:
    return BaseModel(tiny_llama(), byte_tokenizer(), name="tiny-llama")


@pytest.fixture
def plain_prefix() -> Prefix:
    """A prefix of no model in particular."""
    generator = torch.Generator().manual_seed(1)
    shape = (3, 2, 5, 8)
    return Prefix(
        tensors={name: torch.randn(shape, generator=generator) for name in ("decoder.key", "decoder.value")},
        base=BaseIdentity("tiny-llama", None, "ab" * 32),
        template=Template(end=END),
        labels={"note": "größer"},
    )


@pytest.fixture(scope="session")
def smollm_path() -> Path:
    from foreword.models import resolve

    return resolve("smollm2-135m-instruct").path


@pytest.fixture(scope="session")
def smollm() -> BaseModel:
    return BaseModel.load("smollm2-135m-instruct", dtype=torch.float32)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real data sets, which are not part of the project."""
    folder = Path(os.environ.get("FOREWORD_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}; FOREWORD_DATA names another folder")
    return folder
