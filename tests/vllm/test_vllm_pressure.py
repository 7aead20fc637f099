"""Prefixes under pressure: preempted, evicted, loaded again; and under tensor parallelism."""

from __future__ import annotations

from pathlib import Path

import pytest

from foreword import BaseModel
from foreword.errors import AlteredBlob
from foreword.serving.vllm.launch import BLOCK_SIZE
from support.stand_ins import random_prefix
from support.vllm_servers import LOADED, LOCAL_HITS, PREEMPTIONS, VllmServer, local, row, serving


def test_tokens_are_the_same_after_preemption(cramped: VllmServer, base: BaseModel) -> None:
    """Sixteen rows of up to five blocks in space for 24: some are thrown out in the middle, and come back."""
    lengths = (BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, BLOCK_SIZE + 20)
    rows = [
        row(
            base,
            f"prompt {number}",
            random_prefix(base, lengths[number % 4], seed=400 + number),
            owner=f"owner {number}",
            max_tokens=90,
        )
        for number in range(16)
    ]
    before = cramped.counters()
    found = cramped.run(base, rows)
    after = cramped.counters()
    assert after[PREEMPTIONS] > before[PREEMPTIONS]
    assert found == local(base, rows)
    assert max(len(tokens) for tokens in found) == 90


def test_tokens_are_the_same_after_eviction(cramped: VllmServer, base: BaseModel) -> None:
    asked = row(base, "again", random_prefix(base, 2 * BLOCK_SIZE, seed=500), owner="grace")
    (expected,) = local(base, [asked])
    assert cramped.run(base, [asked]) == [expected]
    warm = cramped.counters()
    assert cramped.run(base, [asked]) == [expected]
    cached = cramped.counters()
    assert cached[LOCAL_HITS] - warm[LOCAL_HITS] == 2 * BLOCK_SIZE
    assert cached[LOADED] == warm[LOADED]
    others = [row(base, "x", random_prefix(base, 3 * BLOCK_SIZE, seed=510 + n)) for n in range(12)]
    cramped.run(base, others)  # more blocks than there are
    evicted = cramped.counters()
    assert cramped.run(base, [asked]) == [expected]
    assert cramped.counters()[LOADED] - evicted[LOADED] == 2 * BLOCK_SIZE


def test_each_tensor_parallel_worker_writes_its_own_heads(
    model_folder: Path, base: BaseModel, tmp_path: Path
) -> None:
    """Two workers, a key/value head for each."""
    rows = [
        row(base, prompt, random_prefix(base, length, seed=600 + length), max_tokens=20)
        for prompt in ("hello", "some longer prompt")
        for length in (BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1)
    ]
    bad = random_prefix(base, BLOCK_SIZE, seed=700)
    with serving(model_folder, tmp_path, "--tensor-parallel-size", "2") as parallel:
        assert parallel.run(base, rows) == local(base, rows)
        parallel.put(bad).write_bytes(b"damaged")
        (failed,) = parallel.run(base, [row(base, "hello", bad)])
        assert isinstance(failed, AlteredBlob)
        assert parallel.run(base, rows) == local(base, rows)


def test_a_model_that_would_lose_sight_of_the_prefix_is_refused(tmp_path: Path) -> None:
    """vLLM does not start. (Why, and what else is refused: tests/serving/vllm/test_parts.py.)"""
    from transformers import MistralConfig, MistralForCausalLM

    from foreword.errors import EngineStopped
    from support.stand_ins import VOCABULARY, byte_tokenizer

    config = MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        sliding_window=64,
    )
    MistralForCausalLM(config).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(EngineStopped, match="before it was ready"), serving(tmp_path / "model", tmp_path):
        pass
