"""The real base model behind vLLM: thirty layers, three query heads to each key/value head."""

from __future__ import annotations

from pathlib import Path

import pytest

from foreword import BaseModel
from foreword.serving.vllm.launch import BLOCK_SIZE
from support.stand_ins import random_prefix
from support.vllm_servers import local, row, serving

PROMPTS = ["The capital of France is", "Once upon a time", "def add(a, b):"]


@pytest.mark.real_model
def test_greedy_tokens_of_the_real_model_equal_the_local_engines(
    smollm: BaseModel, smollm_path: Path, tmp_path: Path
) -> None:
    prefixes = [random_prefix(smollm, length, seed=length) for length in (BLOCK_SIZE, BLOCK_SIZE + 5)]
    rows = [row(smollm, prompt, prefix, max_tokens=24) for prompt in PROMPTS for prefix in (*prefixes, None)]
    expected = local(smollm, rows)
    assert len({tuple(tokens) for tokens in expected}) == len(rows)
    with serving(smollm_path, tmp_path, "--max-model-len", "512") as server:
        for _ in range(2):  # cold and warm
            assert server.run(smollm, rows) == expected
