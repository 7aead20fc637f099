"""Tiny models with random weights, one per kind of attention that matters to an import or export."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen3Config,
)

VOCABULARY = 97
_COMMON: dict[str, Any] = {"vocab_size": VOCABULARY, "eos_token_id": 0, "pad_token_id": 0, "bos_token_id": 0}
_LLAMA: dict[str, Any] = {
    **_COMMON,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}

CONFIGS: dict[str, Any] = {
    "gpt2": GPT2Config(**_COMMON, n_embd=32, n_layer=3, n_head=4, n_positions=64, initializer_range=0.2),
    "llama": LlamaConfig(**_LLAMA),
    # The size of its heads is not hidden_size / num_attention_heads.
    "qwen3": Qwen3Config(**_LLAMA, head_dim=16),
    # Layers with and without a window take turns.
    "gemma3": Gemma3TextConfig(**_LLAMA, head_dim=16, sliding_window=64),
    # The last two layers share keys and values with those in front of them.
    "gemma3n": Gemma3nTextConfig(
        **{**_LLAMA, "num_hidden_layers": 4},
        head_dim=16,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        sliding_window=64,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=VOCABULARY,
        laurel_rank=8,
        activation_sparsity_pattern=[0.0] * 4,
    ),
    # The same, and heads of two sizes.
    "gemma4": Gemma4TextConfig(
        **{**_LLAMA, "num_hidden_layers": 4},
        head_dim=8,
        global_head_dim=16,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        sliding_window=64,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=VOCABULARY,
    ),
    "mistral": MistralConfig(**_LLAMA, sliding_window=64),
    # Only a part of each head is turned.
    "neox": GPTNeoXConfig(**{k: v for k, v in _LLAMA.items() if "key_value" not in k}, rotary_pct=0.5),
    "opt": OPTConfig(
        **_COMMON,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
        init_std=0.2,
    ),
}


def build(name: str, seed: int = 0) -> Any:
    """A model with its own random weights; the same seed gives the same ones."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
