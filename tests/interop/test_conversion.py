"""Turning keys by P: the score of every query and key stays what it was with the text at position 0."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.gpt_neox import modeling_gpt_neox
from transformers.models.llama import modeling_llama

from foreword import BaseModel
from foreword.errors import ForeignFormat
from foreword.interop.conversion import text_from_zero_to_after
from support.interop_models import CONFIGS, build
from support.stand_ins import byte_tokenizer, tiny_llama

ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}


def turned(rotary: Any, module: Any, query: torch.Tensor, position: int) -> torch.Tensor:
    cos, sin = rotary(query, torch.tensor([[position]]))
    return module.apply_rotary_pos_emb(query, query, cos, sin)[0]


def scores_stay(base: BaseModel, rotary: Any, module: Any) -> None:
    sizes = base.geometry.streams["decoder"]
    generator = torch.Generator().manual_seed(0)
    key_LHPD = torch.randn(sizes.layers, sizes.kv_heads, 5, sizes.key_dim, generator=generator)
    query = torch.randn(sizes.layers, sizes.kv_heads, 1, sizes.key_dim, generator=generator)
    moved_LHPD = text_from_zero_to_after(key_LHPD, base)
    assert (moved_LHPD - key_LHPD).abs().max() > 0.1
    for position in (0, 3, 20):
        before = turned(rotary, module, query, position) @ key_LHPD.transpose(2, 3)
        after = turned(rotary, module, query, 5 + position) @ moved_LHPD.transpose(2, 3)
        torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rope", ROPES)
def test_scores_stay_what_they_were_under_every_fixed_scaling(rope: str) -> None:
    parameters = {"rope_type": rope, "rope_theta": 100.0, **ROPES[rope]}
    base = BaseModel(tiny_llama(rope_parameters=parameters), byte_tokenizer(), name="tiny")
    scores_stay(base, base.model.model.rotary_emb, modeling_llama)


def test_scores_stay_what_they_were_where_only_a_part_of_each_head_turns() -> None:
    base = BaseModel(build("neox"), byte_tokenizer(), name="tiny")
    scores_stay(base, base.model.gpt_neox.rotary_emb, modeling_gpt_neox)


@pytest.mark.parametrize("name", ["gpt2", "opt", "gemma3"])
def test_positions_of_another_kind_are_refused(name: str) -> None:
    assert name in CONFIGS
    base = BaseModel(build(name), byte_tokenizer(), name="tiny")
    sizes = base.geometry.streams["decoder"]
    with pytest.raises(ForeignFormat, match="Train"):
        text_from_zero_to_after(torch.zeros(sizes.layers, sizes.kv_heads, 5, sizes.key_dim), base)
