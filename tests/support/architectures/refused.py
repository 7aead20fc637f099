"""Architectures that are refused when they are loaded, and why."""

from __future__ import annotations

from support.architectures.zoo import ABSENT, EXPERTS, LATENT, Architecture

_SOME = "attention layers take a prefix"
_OLD_CODE = (
    "attention code of its own in transformers 5.19; newer releases that lack it are tried when loaded"
)
_OWN_CODE = "0 of 3 decoder attention layers"
_NONE = "0 of 0 decoder attention layers"

REFUSED: tuple[Architecture, ...] = (
    Architecture(
        "Falcon",
        "falcon",
        {"head_dim": ABSENT, "num_key_value_heads": ABSENT},
        "attention code of its own",
        refused=_OWN_CODE,
    ),
    Architecture(
        "Falcon with ALiBi",
        "falcon",
        {"head_dim": ABSENT, "num_key_value_heads": ABSENT, "alibi": True},
        "attention code of its own",
        refused=_OWN_CODE,
    ),
    Architecture("BLOOM", "bloom", {}, "attention code of its own, ALiBi", refused=_OWN_CODE),
    Architecture("MPT", "mpt", {}, "attention code of its own, ALiBi", refused=_OWN_CODE),
    Architecture("GPT-J", "gptj", {"rotary_dim": 4}, _OLD_CODE, refused=_OWN_CODE, changed=True),
    Architecture("CodeGen", "codegen", {"rotary_dim": 4}, _OLD_CODE, refused=_OWN_CODE, changed=True),
    Architecture(
        "GPT-Neo",
        "gpt_neo",
        {"attention_types": [[["global", "local", "global"], 1]]},
        "attention code of its own",
        refused=_OWN_CODE,
    ),
    Architecture(
        "XGLM",
        "xglm",
        {"d_model": 32, "ffn_dim": 48, "attention_heads": 4, "num_layers": 3},
        "attention code of its own",
        refused=_OWN_CODE,
    ),
    Architecture("GPT", "openai-gpt", {}, "attention code of its own", refused=_OWN_CODE),
    Architecture("RWKV", "rwkv", {}, "no attention", refused=_OWN_CODE),
    Architecture("Mamba", "mamba", {}, "no attention", refused=_NONE),
    Architecture(
        "Mamba 2",
        "mamba2",
        {"num_heads": 4, "head_dim": 16, "n_groups": 1, "state_size": 8},
        "no attention",
        refused=_NONE,
    ),
    Architecture("Falcon-Mamba", "falcon_mamba", {}, "no attention", refused=_NONE),
    Architecture("xLSTM", "xlstm", {}, "no attention", refused=_OWN_CODE),
    Architecture(
        "RecurrentGemma",
        "recurrent_gemma",
        {},
        "hybrid that keeps its states outside of the cache and begins them at position 0",
        refused="1 of 3 decoder attention layers|a prefix does not do what transformers' cache does",
    ),
    Architecture(
        "Kimi Linear",
        "kimi_linear",
        {
            **EXPERTS,
            **LATENT,
            "linear_attn_config": {
                "kda_layers": [1, 2],
                "full_attn_layers": [3],
                "num_heads": 4,
                "head_dim": 8,
                "short_conv_kernel_size": 4,
            },
        },
        "hybrid with latent attention, whose cache has no place for a prefix to compare with",
        refused="does not keep keys and values as attention sees them",
    ),
    Architecture(
        "MiniMax",
        "minimax",
        EXPERTS,
        "hybrid with a cache of its own, which can't be compared with",
        refused="uses cache of its own",
    ),
    Architecture(
        "Llama 4 with temperature tuning",
        "llama4_text",
        {**EXPERTS, "intermediate_size_mlp": 48},
        "its attention counts positions on its own",
        refused="attn_temperature_tuning",
    ),
    Architecture(
        "Inkling",
        "inkling_text",
        {
            **EXPERTS,
            "swa_num_key_value_heads": 4,
            "swa_num_attention_heads": 4,
            "swa_head_dim": 8,
            "sliding_window_size": 4,
        },
        "convolutions over keys and values, and distances counted in the layer",
        refused="does not do what transformers' cache does",
    ),
    Architecture("DiffLlama", "diffllama", {}, "two attentions in a layer", refused=_SOME),
    Architecture("Doge", "doge", {}, "makes its mask in the layer", refused="fails with a prefix in front"),
    Architecture(
        "HRM",
        "hrm_text",
        {},
        "passes through a layer several times",
        refused="layers share one attention module",
    ),
    Architecture(
        "BART's decoder alone",
        "bart",
        {
            "decoder_layers": 3,
            "encoder_layers": 3,
            "d_model": 32,
            "decoder_attention_heads": 4,
            "encoder_attention_heads": 4,
            "decoder_ffn_dim": 48,
            "encoder_ffn_dim": 48,
            "hidden_size": ABSENT,
            "num_hidden_layers": ABSENT,
            "num_attention_heads": ABSENT,
        },
        "takes no positions",
        refused="counts positions",
    ),
    Architecture("LED", "led", {}, "attention code of its own", refused=_SOME, kind="encoder-decoder"),
    Architecture(
        "LongT5",
        "longt5",
        {},
        "attention code of its own in the encoder",
        refused=_SOME,
        kind="encoder-decoder",
    ),
    Architecture(
        "Pegasus-X",
        "pegasus_x",
        {},
        "attention code of its own in the encoder",
        refused=_SOME,
        kind="encoder-decoder",
    ),
    Architecture(
        "BigBird-Pegasus",
        "bigbird_pegasus",
        {},
        "attention code of its own in the encoder",
        refused=_SOME,
        kind="encoder-decoder",
    ),
    Architecture("FSMT", "fsmt", {}, "attention code of its own", refused=_SOME, kind="encoder-decoder"),
    Architecture("MVP", "mvp", {}, "attention code of its own", refused=_SOME, kind="encoder-decoder"),
    Architecture(
        "Switch Transformers",
        "switch_transformers",
        {},
        "experts of limited capacity: rows depend on each other",
        refused="expert_capacity",
        kind="encoder-decoder",
    ),
    Architecture(
        "NLLB-MoE",
        "nllb-moe",
        {},
        "experts of limited capacity: rows depend on each other",
        refused="expert_capacity",
        kind="encoder-decoder",
    ),
)
