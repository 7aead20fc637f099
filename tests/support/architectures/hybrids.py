"""The hybrids that work: layers with a state of the text stand beside attention, or in place of it."""

from __future__ import annotations

from typing import Any

from support.architectures.zoo import DECODER_ONLY, EXPERTS, STATE, Architecture

# Two attention layers, with a state in front of and between them.
LINEAR: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
CONVOLUTION: dict[str, Any] = {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2}
ZAMBA: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layers_block_type": ["mamba", "hybrid"] * 2,
    "n_mamba_heads": 4,
    "mamba_d_state": 8,
    "attention_head_dim": 16,
}

_DELTA = "gated delta rule"
_HYBRID = "Mamba 2"

HYBRID_WORKING: tuple[Architecture, ...] = (
    Architecture("Qwen3-Next", "qwen3_next", {**LINEAR, **EXPERTS}, f"{_DELTA}; experts"),
    Architecture(
        "Qwen3.5 with images, on text", "qwen3_5", {"text_config": {**DECODER_ONLY, **LINEAR}}, _DELTA
    ),
    Architecture("Qwen3.5-MoE, text alone", "qwen3_5_moe_text", {**LINEAR, **EXPERTS}, f"{_DELTA}; experts"),
    Architecture(
        "Granite 4",
        "granitemoehybrid",
        {
            **STATE,
            **EXPERTS,
            "num_hidden_layers": 4,
            "layer_types": ["mamba", "attention"] * 2,
            "shared_intermediate_size": 48,
        },
        f"{_HYBRID}; experts",
    ),
    Architecture("LFM2", "lfm2", CONVOLUTION, "short convolutions"),
    Architecture(
        "LFM2-MoE",
        "lfm2_moe",
        {**CONVOLUTION, **EXPERTS, "num_dense_layers": 1},
        "short convolutions; experts",
    ),
    Architecture(
        "Nemotron-H",
        "nemotron_h",
        {
            **EXPERTS,
            "num_hidden_layers": 5,
            "layers_block_type": ["mamba", "attention", "moe", "attention", "mlp"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "ssm_state_size": 8,
            "n_groups": 1,
            "expand": 2,
            "chunk_size": 8,
        },
        f"{_HYBRID}; experts; layers of one kind each",
    ),
    Architecture(
        "Falcon-H1", "falcon_h1", {**STATE, "mamba_d_ssm": 64}, f"{_HYBRID} beside attention in every layer"
    ),
    Architecture(
        "Jamba",
        "jamba",
        {
            "num_hidden_layers": 4,
            "use_mamba_kernels": False,
            "num_experts": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
        },
        "Mamba; experts",
    ),
    Architecture("Bamba", "bamba", {**STATE, "num_hidden_layers": 4, "attn_layer_indices": [1, 3]}, _HYBRID),
    Architecture("OLMo hybrid", "olmo_hybrid", LINEAR, _DELTA),
    Architecture("Zamba", "zamba", {**ZAMBA, "n_mamba_heads": 2, "mamba_dt_rank": 4}, "Mamba"),
    Architecture(
        "Zamba 2",
        "zamba2",
        {
            **ZAMBA,
            "mamba_headdim": 16,
            "mamba_ngroups": 1,
            "adapter_rank": 4,
            "chunk_size": 8,
            "initializer_range": 0.1,
        },
        _HYBRID,
    ),
)
