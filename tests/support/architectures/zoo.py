"""Zoo: one tiny model with random weights for every architecture that the tests know."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from foreword import BaseModel
from support.stand_ins import VOCABULARY, byte_tokenizer

WINDOW = 4
"""Tokens that a windowed layer sees: fewer than any prompt of the tests has."""

ABSENT = object()
"""Stands for a common setting that an architecture does not take."""

SPECIAL = {"pad_token_id": 0, "eos_token_id": 0, "bos_token_id": None}

# Large weights, so that every token, layer and head matters to the logits.
DECODER_ONLY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "head_dim": 8,
    "initializer_range": 0.2,
    **SPECIAL,
}

# Encoder and decoder of different depth, by BART's and by T5's names.
ENCODER_DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "d_ff": 48,
    "d_kv": 8,
    "max_position_embeddings": 128,
    "init_std": 0.2,
    "initializer_factor": 1.0,
    "decoder_start_token_id": 0,
    **SPECIAL,
}

EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 6,
    "head_dim": 4,
    "num_key_value_heads": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
STATE = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,  # shorter than the rows of the tests
}


@dataclass(frozen=True)
class Architecture:
    """One entry.

    Attributes:
        name: as people call it.
        model_type: as transformers calls it.
        settings: of its configuration, beside or instead of the common ones; None takes one away.
        note: what a user should know, for the table in the docs; why it is refused.
        windowed: some of its layers see the last `WINDOW` tokens only.
        refused: part of the message with which it is refused; None when it works.
        changed: newer releases of transformers than the oldest that is tested here have other code for it.
    """

    name: str
    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    windowed: bool = False
    refused: str | None = None
    changed: bool = False
    kind: Literal["decoder-only", "encoder-decoder"] = "decoder-only"

    def model(self, dtype: torch.dtype = torch.float32) -> Any:
        """A new model, the same at every call; its weights are numbers that bfloat16 has."""
        common = DECODER_ONLY if self.kind == "decoder-only" else ENCODER_DECODER
        chosen = {name: value for name, value in {**common, **self.settings}.items() if value is not ABSENT}
        config = AutoConfig.for_model(self.model_type, **chosen)
        auto = AutoModelForCausalLM if self.kind == "decoder-only" else AutoModelForSeq2SeqLM
        torch.manual_seed(0)
        model = auto.from_config(config, dtype=dtype).eval()
        for parameter in model.parameters():
            if (
                parameter.requires_grad
            ):  # others are computed, as positions are: transformers does not load them
                parameter.data = parameter.data.to(torch.bfloat16).to(dtype)
        return model

    @functools.cached_property
    def base(self) -> BaseModel:
        """Shared by all tests: nothing may change it."""
        return BaseModel(self.model(), byte_tokenizer(), name=self.model_type)

    @functools.cached_property
    def half(self) -> BaseModel:
        """The same weights in bfloat16, as transformers loads them: some stay in float32."""
        model = self.model(torch.bfloat16)
        model.load_state_dict(self.base.model.state_dict())
        kept = tuple(model._keep_in_fp32_modules_strict or ())
        for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
            if any(each in name for each in kept):
                tensor.data = tensor.data.float()
        return BaseModel(model, byte_tokenizer(), name=self.model_type)

    def __str__(self) -> str:
        return self.model_type
