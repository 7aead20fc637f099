"""A tiny encoder-decoder, to say no with."""

from __future__ import annotations

import torch
from transformers import BartConfig, BartForConditionalGeneration

from foreword import BaseModel
from support.stand_ins import VOCABULARY, byte_tokenizer


def tiny_bart_base(window: int = 64) -> BaseModel:
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=VOCABULARY,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=window,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=0,
        forced_eos_token_id=None,
    )
    return BaseModel(BartForConditionalGeneration(config), byte_tokenizer(), name="tiny-bart")
