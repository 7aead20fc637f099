"""Tiny base models whose weights are an exact formula of integers: the same fingerprint on every machine.

The fixtures of this folder were made on these models, so nothing here may change: neither sizes nor the
formula nor the tokenizer. Kept apart from the other tests' stand-ins for that reason.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from foreword import BaseModel

END = "<end>"
VOCABULARY = 97
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}a: {% endif %}"
)

PRIME = 8191
"""Weights are whole numbers modulo this, less half of it, times a power of two: exact in float32."""

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "eos_token_id": 0,
    "bos_token_id": None,
}


def _llama() -> Any:
    return LlamaForCausalLM(LlamaConfig(**_SIZES, max_position_embeddings=128))


def _window() -> Any:
    return MistralForCausalLM(
        MistralConfig(**_SIZES, max_position_embeddings=256, sliding_window=12, head_dim=4)
    )


def _seq2seq() -> Any:
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=VOCABULARY,
            d_model=16,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            max_position_embeddings=64,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
            decoder_start_token_id=0,
            forced_eos_token_id=None,
        )
    )


_MODELS = {"tiny-llama": (_llama, 0), "tiny-window": (_window, 40), "tiny-seq2seq": (_seq2seq, 80)}
"""How each is built, and where its numbers begin: no two have a weight in common."""

FINGERPRINTS = {
    "tiny-llama": "c65ff83a81739dd0e8a8edf27b3151427552fb83c90755e64b562638a27ff328",
    "tiny-window": "cabc8f25e27cd57ff03fe09b492219d588d1c73597d7c42f539e269bef1fe774",
    "tiny-seq2seq": "8bb47e0f69eb966bb12277cc721b5d52295835857d66d4123949d49117205e4b",
}


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable ASCII character, newline, and an end token."""
    printable = "".join(map(chr, range(32, 127))) + "\n"
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = list(pre_tokenizer.pre_tokenize_str(printable)[0][0])
    vocabulary = {END: 0, **{letter: index + 1 for index, letter in enumerate(alphabet)}}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizer
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=END, pad_token=END, chat_template=CHAT_TEMPLATE
    )


def save(name: str, folder: Path) -> Path:
    """Save the model called `name` in a folder of that name in `folder`, as a user has it."""
    build, first = _MODELS[name]
    model = build().eval()
    with torch.no_grad():
        for number, (key, parameter) in enumerate(sorted(model.named_parameters()), start=first):
            if parameter.ndim == 1:  # norms one, biases zero
                parameter.fill_(0.0 if key.endswith("bias") else 1.0)
                continue
            places = torch.arange(parameter.numel(), dtype=torch.int64)
            mixed = (places * places * 31 + places * (number + 7) + 101 * number) % PRIME
            mixed = (mixed * mixed + 17 * mixed) % PRIME
            # From -1/2 to 1/2: large enough that every token matters to the next.
            parameter.copy_(((mixed - PRIME // 2).float() / 8192).reshape(parameter.shape))
    model.save_pretrained(folder / name)
    tokenizer().save_pretrained(folder / name)
    return folder / name


def load(name: str) -> BaseModel:
    """The model called `name` in the working directory, under that name.

    Not by an absolute path: a checkpoint names its base as it was given, and is of no other.
    """
    return BaseModel.load(name, device="cpu", dtype="float32")
