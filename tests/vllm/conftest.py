"""Tests against a real vLLM, which pins its own torch and so lives in an environment of its own.

`make test-vllm` makes that environment and runs them; `make test`, whose environment has no vLLM, leaves
them out and says so at its beginning. What needs no vLLM is tested in tests/serving/vllm.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from foreword import BaseModel

SPEC = importlib.util.find_spec("vllm")
HERE = SPEC is not None and SPEC.origin is not None  # this folder alone would make a namespace of that name
collect_ignore_glob = [] if HERE else ["test_*.py"]


def pytest_report_header() -> str | None:
    return None if HERE else "tests/vllm is left out: no vLLM in this environment; run make test-vllm"


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama with heads of a size that vLLM's kernels have."""
    from support.saved_bases import save_tiny

    folder = tmp_path_factory.mktemp("base") / "tiny-llama"
    return save_tiny(folder, hidden_size=64, head_dim=32, max_position_embeddings=512)


@pytest.fixture(scope="session")
def base(model_folder: Path) -> BaseModel:
    return BaseModel.load(model_folder)


@pytest.fixture(scope="session")
def server(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """As `foreword serve` starts it: blocks of 32 tokens, room for many."""
    from support.vllm_servers import serving

    with serving(model_folder, tmp_path_factory.mktemp("folder")) as running:
        yield running


@pytest.fixture(scope="session")
def cramped(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """Space for 24 blocks only, no door in front, and workers that remember nothing."""
    from support.vllm_servers import serving

    more = ("--num-gpu-blocks-override", "25")
    with serving(
        model_folder, tmp_path_factory.mktemp("folder"), *more, door=False, memory_bytes=0
    ) as running:
        yield running
