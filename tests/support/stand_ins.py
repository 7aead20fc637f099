"""Tiny stand-ins for models, prefixes and data, small enough to compute by hand."""

from __future__ import annotations

import random
import string

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from foreword import BaseModel, Example, Prefix

END = "<end>"
PRINTABLE = "".join(map(chr, range(32, 127))) + "\n"
VOCABULARY = 97
"""Tokens of the tokenizer with one for each of `PRINTABLE`."""
LETTERS = " ." + string.ascii_lowercase
"""For models of 29 embeddings: those that other libraries' results were recorded with."""


def byte_tokenizer(characters: str = PRINTABLE, **special: str) -> PreTrainedTokenizerFast:
    """One token per character and an end token: every token is readable."""
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = list(pre_tokenizer.pre_tokenize_str(characters)[0][0])
    vocabulary = {END: 0, **{letter: index + 1 for index, letter in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END, **special)


def tiny_llama(seed: int = 0, **changes: object) -> LlamaForCausalLM:
    """Three layers, grouped heads; large enough weights that every token matters to the next."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "eos_token_id": 0,
        "bos_token_id": None,
        "initializer_range": 0.2,
    }
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes}))


def random_prefix(
    base: BaseModel, length: int, seed: int = 0, scale: float = 1.0, **changes: object
) -> Prefix:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for place, shapes in base.geometry.shapes(dict.fromkeys(base.geometry.streams, length)).items():
        stream, _, layer = place.partition(".")
        for part, shape in zip(("key", "value"), shapes, strict=True):
            name = f"{stream}.{part}.{layer}" if layer else f"{stream}.{part}"
            tensors[name] = torch.randn(shape, generator=generator) * scale
    return Prefix(tensors=tensors, **{"base": base.identity, "template": base.template, **changes})


def random_examples(count: int, seed: int = 0, shortest: int = 3, longest: int = 20) -> list[Example]:
    generator = random.Random(seed)

    def text() -> str:
        length = generator.randint(shortest, longest)
        return "".join(generator.choice("abcdefgh .") for _ in range(length - 1)) + "z"

    return [Example(text(), text()) for _ in range(count)]
