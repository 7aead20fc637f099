"""Tiny stand-ins, and the real model where a test asks for it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from foreword import BaseModel, Example, Prefix
from foreword.prefix import BaseIdentity
from foreword.template import Template

REPOSITORY = Path(__file__).parents[1]
END = "<end>"
VOCABULARY = 97

# Tiny models gain nothing from threads, and lose much where tests run beside other work.
torch.set_num_threads(1)


def byte_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """One token per printable ASCII character, newline, and an end token: every token is readable."""
    printable = "".join(map(chr, range(32, 127))) + "\n"
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = list(pre_tokenizer.pre_tokenize_str(printable)[0][0])
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


@pytest.fixture
def tiny_base() -> BaseModel:
    return BaseModel(tiny_llama(), byte_tokenizer(), name="tiny-llama")


def random_prefix(
    base: BaseModel, length: int, seed: int = 0, scale: float = 1.0, **changes: object
) -> Prefix:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for stream, g in base.geometry.streams.items():
        for part, size in (("key", g.key_dim), ("value", g.value_dim)):
            shape = (g.layers, g.kv_heads, length, size)
            tensors[f"{stream}.{part}"] = torch.randn(shape, generator=generator) * scale
    return Prefix(tensors=tensors, **{"base": base.identity, "template": base.template, **changes})


def random_examples(count: int, seed: int = 0, shortest: int = 3, longest: int = 20) -> list[Example]:
    generator = random.Random(seed)

    def text() -> str:
        length = generator.randint(shortest, longest)
        return "".join(generator.choice("abcdefgh .") for _ in range(length - 1)) + "z"

    return [Example(text(), text()) for _ in range(count)]


@pytest.fixture
def plain_prefix() -> Prefix:
    """A prefix of no model in particular."""
    generator = torch.Generator().manual_seed(1)
    shape = (3, 2, 5, 8)
    return Prefix(
        tensors={name: torch.randn(shape, generator=generator) for name in ("decoder.key", "decoder.value")},
        base=BaseIdentity("tiny-llama", None, "ab" * 32),
        template=Template(end=END),
        labels={"note": "größer"},
    )


@pytest.fixture(scope="session")
def smollm_path() -> Path:
    from foreword.models import resolve

    return resolve("smollm2-135m-instruct").path


@pytest.fixture(scope="session")
def smollm() -> Iterator[BaseModel]:
    torch.set_num_threads(os.cpu_count() or 1)
    yield BaseModel.load("smollm2-135m-instruct", dtype=torch.float32)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real data sets, which are not part of the project."""
    folder = Path(os.environ.get("FOREWORD_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}; FOREWORD_DATA names another folder")
    return folder
