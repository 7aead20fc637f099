"""A vLLM that serves AWQ files carries prefixes of the plain model where the store declares the two equivalent."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from foreword import BaseModel, PrefixStore
from foreword.errors import EngineStopped
from foreword.models.fingerprint import fingerprint
from support.awq import save_awq
from support.saved_bases import save_tiny
from support.stand_ins import random_prefix
from support.vllm_servers import ask, local, row, serving

PROMPTS = ["hello", "a", "some longer prompt here, longer than a block of tokens", "xyz abc"]


def agreement(found: list[list[int]], expected: list[list[int]]) -> float:
    """The share of tokens that are the same at the same place."""
    same = [
        a == b for one, other in zip(found, expected, strict=True) for a, b in zip(one, other, strict=True)
    ]
    return sum(same) / len(same)


def test_prefixes_of_the_plain_model_run_on_awq_files_once_that_is_declared(tmp_path: Path) -> None:
    plain = save_tiny(tmp_path / "plain", hidden_size=128, intermediate_size=256, head_dim=32)
    save_awq(plain, tmp_path / "awq", tmp_path / "dequantized")
    base = BaseModel.load(plain)
    prefix = random_prefix(base, 37, seed=3)
    with_prefix, without = (
        [
            dataclasses.replace(row(base, prompt, one, max_tokens=12), end_ids=frozenset())
            for prompt in PROMPTS
        ]
        for one in (prefix, None)
    )
    # What the same rounded weights say as plain numbers, in the data type that vLLM computes with.
    rounded = BaseModel.load(tmp_path / "dequantized", dtype="bfloat16")
    rounded.equivalent |= {base.fingerprint}
    expected, bare = (
        [[token.token_id for token in tokens] for tokens in local(rounded, rows)]
        for rows in (with_prefix, without)
    )
    with PrefixStore(tmp_path / "store") as store:
        store.put("alice/one", prefix)
        with serving(tmp_path / "awq", tmp_path / "store", "--dtype", "bfloat16", store=True) as server:
            refused = ask(lambda: server.engine(base), with_prefix)
            assert [type(error) for error in refused] == [EngineStopped] * len(PROMPTS)  # its log says why
            store.declare_equivalent(
                base.fingerprint, fingerprint(tmp_path / "awq"), loss_difference=0.1, by="these tests"
            )
            answers = ask(lambda: server.engine(base), with_prefix)
    found = [[token.token_id for token in tokens] for tokens in answers]
    # In bfloat16 two engines part where two tokens are nearly as likely, and stay apart from there on.
    assert agreement(found, expected) > 0.5
    assert agreement(found, bare) < 0.25
    assert [tokens[:2] for tokens in found] == [tokens[:2] for tokens in expected]
