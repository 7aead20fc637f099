"""The decoder-only architectures that work."""

from __future__ import annotations

from zoo import ABSENT, DECODER_ONLY, EXPERTS, LATENT, WINDOW, Architecture

from stand_ins import VOCABULARY

SOFT_CAP = "eager kernel: SDPA has no soft cap"
VISIBLE = "sliding window; the prefix stays visible beyond it"
WINDOWED = f"{VISIBLE}, and within its reach"

DECODER_ONLY_WORKING: tuple[Architecture, ...] = (
    Architecture("GPT-2", "gpt2", {"num_key_value_heads": ABSENT, "head_dim": ABSENT}),
    Architecture("OPT", "opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    Architecture("GPT-NeoX, Pythia", "gpt_neox"),
    Architecture("GPT-BigCode, StarCoder", "gpt_bigcode", note="one key/value head for all query heads"),
    Architecture("StarCoder2", "starcoder2", {"sliding_window": WINDOW}, WINDOWED, windowed=True),
    Architecture("LLaMA, SmolLM, SmolLM2", "llama"),
    Architecture("SmolLM3", "smollm3", {"no_rope_layers": [1, 0, 1]}, "some layers without positions"),
    Architecture("Mistral", "mistral", {"sliding_window": WINDOW}, WINDOWED, windowed=True),
    Architecture(
        "Mixtral", "mixtral", {**EXPERTS, "sliding_window": WINDOW}, f"experts; {WINDOWED}", windowed=True
    ),
    Architecture("Ministral", "ministral", {"sliding_window": WINDOW}, WINDOWED, windowed=True),
    Architecture("Qwen2, Qwen2.5", "qwen2"),
    Architecture("Qwen2-MoE", "qwen2_moe", EXPERTS, "experts"),
    Architecture("Qwen3", "qwen3"),
    Architecture("Qwen3-MoE", "qwen3_moe", EXPERTS, "experts"),
    Architecture("Gemma", "gemma"),
    Architecture(
        "Gemma 2",
        "gemma2",
        {"sliding_window": WINDOW, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0},
        f"{SOFT_CAP}; {WINDOWED} (every other layer)",
        windowed=True,
    ),
    Architecture(
        "Gemma 3",
        "gemma3_text",
        {
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 8,
            "head_dim": 12,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
        f"{WINDOWED}; another rotary base in windowed layers",
        windowed=True,
    ),
    Architecture(
        "Gemma 3 with images, on text",
        "gemma3",
        {
            "text_config": {**DECODER_ONLY, "sliding_window": WINDOW, "query_pre_attn_scalar": 8},
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
        },
        WINDOWED,
        windowed=True,
    ),
    Architecture(
        "Gemma 3n",
        "gemma3n_text",
        {
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            "sliding_window": WINDOW,
            "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCABULARY,
            "laurel_rank": 8,
            "activation_sparsity_pattern": [0.0] * 4,
            "intermediate_size": 48,
        },
        f"{WINDOWED}; layers that share keys and values of the text have a prefix of their own each",
        windowed=True,
    ),
    Architecture(
        "VaultGemma",
        "vaultgemma",
        {"sliding_window": WINDOW, "query_pre_attn_scalar": 8},
        f"eager kernel; {WINDOWED}",
        windowed=True,
    ),
    Architecture("Phi, Phi-1.5, Phi-2", "phi"),
    Architecture("Phi-3, Phi-4", "phi3", {"sliding_window": WINDOW}, WINDOWED, windowed=True),
    Architecture("Phi-3.5-MoE", "phimoe", EXPERTS, "experts"),
    Architecture(
        "DeepSeek-V2",
        "deepseek_v2",
        {**EXPERTS, **LATENT},
        "latent attention: keys and values differ in size",
    ),
    Architecture(
        "DeepSeek-V3, R1",
        "deepseek_v3",
        {**EXPERTS, **LATENT},
        "latent attention: keys and values differ in size",
    ),
    Architecture(
        "GPT-OSS",
        "gpt_oss",
        {**EXPERTS, "sliding_window": WINDOW},
        f"eager kernel: SDPA has no attention sinks; experts; {WINDOWED}",
        windowed=True,
    ),
    Architecture("Cohere, Command R", "cohere"),
    Architecture("Cohere 2, Command R7B", "cohere2", {"sliding_window": WINDOW}, WINDOWED, windowed=True),
    Architecture("Granite", "granite"),
    Architecture("Granite-MoE", "granitemoe", EXPERTS, "experts"),
    Architecture("OLMo", "olmo"),
    Architecture("OLMo 2", "olmo2"),
    Architecture("OLMo 3", "olmo3", {"sliding_window": WINDOW}, WINDOWED, windowed=True),
    Architecture("OLMoE", "olmoe", EXPERTS, "experts"),
    Architecture(
        "Llama 4 without temperature tuning",
        "llama4_text",
        {
            **EXPERTS,
            "attention_chunk_size": WINDOW,
            "intermediate_size_mlp": 48,
            "interleave_moe_layer_step": 2,
            "attn_temperature_tuning": False,
            "no_rope_layers": [1, 1, 0],
        },
        "chunked attention, chunks counted in the text; the prefix is visible in every chunk",
        windowed=True,
    ),
    Architecture("StableLM", "stablelm"),
    Architecture("Persimmon", "persimmon"),
    Architecture("BioGPT", "biogpt", {"head_dim": ABSENT}),
    Architecture("GLM-4", "glm"),
    Architecture("GLM-4-0414", "glm4"),
    Architecture("Nemotron", "nemotron"),
    Architecture(
        "EXAONE 4",
        "exaone4",
        {"sliding_window": WINDOW, "sliding_window_pattern": 2},
        WINDOWED,
        windowed=True,
    ),
    Architecture("Helium", "helium"),
    Architecture("Arcee", "arcee"),
    Architecture("ERNIE 4.5", "ernie4_5"),
    Architecture("Seed-OSS", "seed_oss"),
    Architecture("Apertus", "apertus"),
    Architecture("HunYuan dense", "hunyuan_v1_dense"),
    Architecture("BitNet", "bitnet"),
    Architecture("nanochat", "nanochat"),
    Architecture("CTRL", "ctrl", {"head_dim": ABSENT}),
)
