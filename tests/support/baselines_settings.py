"""What every baseline is tried with: a tiny base, a few examples, and a fresh start of any method."""

from __future__ import annotations

from typing import Any

from foreword import BaseModel, Example
from foreword.encoding import EncodedExample, encode
from foreword.research.baselines.protocol import AdapterInputs
from support.stand_ins import byte_tokenizer, random_examples, tiny_llama

INSTRUCTION = "Say it."


def roomy_base() -> BaseModel:
    """A tiny base with room for demonstrations, and a chat template."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'][0] }}{{ m['content'] }}\n{% endfor %}"
    return BaseModel(tiny_llama(max_position_embeddings=512), tokenizer, name="tiny-llama")


def rows_of(base: BaseModel, examples: list[Example]) -> list[EncodedExample]:
    return encode(examples, base.tokenizer, base.template)[0]


def setting_of(base: BaseModel, choice: dict[str, Any] | None = None, **changes: Any) -> AdapterInputs:
    examples = random_examples(12)
    given = {
        "base": base,
        "examples": examples,
        "rows": rows_of(base, examples),
        "length": 4,
        "seed": 0,
        "choice": choice or {},
        "instruction": INSTRUCTION,
    }
    return AdapterInputs(**{**given, **changes})
