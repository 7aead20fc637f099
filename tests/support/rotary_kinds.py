"""Tiny models with every kind of rotary embedding that transformers has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foreword import BaseModel
from support.architectures.zoo import Architecture
from support.stand_ins import byte_tokenizer, tiny_llama

POSITIONS = 2100
SHORT = 32  # positions of training, where a kind has them
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": POSITIONS,
    "head_dim": 8,
    "initializer_range": 0.5,
}
SCALED = {"factor": 4.0, "original_max_position_embeddings": SHORT}
FACTORS = {"short_factor": [1.0, 1.5, 2.0, 1.0], "long_factor": [4.0, 6.0, 3.0, 5.0]}
KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": SCALED,
    "longrope": {**FACTORS, "original_max_position_embeddings": SHORT},
    "llama3": {**SCALED, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "proportional": {"partial_rotary_factor": 0.5},
}


def settings(kind: str) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 100.0, **KINDS[kind]}


def model_of(kind: str, **changes: Any) -> Any:
    if kind == "mrope":
        rope = {
            "rope_type": "default",
            "rope_theta": 100.0,
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
        }
        more = {"layer_types": ["full_attention"] * 2, "rope_parameters": rope, **changes}
        return Architecture("", "qwen3_5_text", {**SIZES, **more, "partial_rotary_factor": 1.0}).model()
    return tiny_llama(**{**SIZES, "rope_parameters": settings(kind), **changes}).eval()


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def base_of(kind: str, folder: Path) -> BaseModel:
    if kind != "longrope":
        return BaseModel(model_of(kind), byte_tokenizer(), name=kind)
    return BaseModel.load(saved(model_of(kind), folder), device="cpu", long_context=True)
