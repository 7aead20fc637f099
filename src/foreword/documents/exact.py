"""A document's own tokens, and the keys and values that the base computes of them.

They are the prefix that method `exact` makes, what the teacher of `studied` has in its context, and what a
report compares with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from foreword.base.attention import capture_kv
from foreword.base.base_model import BaseModel
from foreword.base.prefix_batch import KeyValues
from foreword.documents.chunks import pieces
from foreword.documents.settings import Precision
from foreword.template import Template, default_template
from foreword.training.train import resumed_template

SEPARATOR = "\n\n"
"""Between a document and a question, on a base without a chat template."""


def document_template(base: BaseModel, folder: Path | None = None) -> Template:
    """The template of a document's prefix: the base's chat template, with the document as system message.

    On a base without one, the document, an empty line, and a source and its answer on lines of their own.

    Args:
        folder: of checkpoints; a run that goes on keeps the day that its template writes.
    """
    if getattr(base.tokenizer, "chat_template", None):
        chat = default_template(base.tokenizer, style="chat", begin=False, source_tokens=None)
        return resumed_template(base, dataclasses.replace(chat, system_in_prefix=True), folder)
    return dataclasses.replace(base.template, begin=False, source_tokens=None)


def opening_ids(base: BaseModel, template: Template) -> list[int]:
    """What stands in front of the document in its prefix: its first token is the attention sink."""
    if template.system_in_prefix:
        return text_ids(base, template.opening(base.tokenizer))
    begins = base.raw_template.begin
    return [base.tokenizer.bos_token_id] if begins else []


def document_ids(base: BaseModel, template: Template, text: str) -> list[int]:
    """The tokens that a document's prefix stands for: all in front of what a source becomes."""
    text = text.strip() if template.system_in_prefix else text.strip() + SEPARATOR
    return [*opening_ids(base, template), *text_ids(base, text)]


@torch.no_grad()
def exact_key_values(base: BaseModel, ids: Sequence[int]) -> KeyValues:
    """The base's own keys and values of some tokens, at positions from 0, in float32."""
    ids_1T = torch.tensor([list(ids)], device=base.device)
    inputs = {"input_ids": ids_1T, "attention_mask": torch.ones_like(ids_1T)}
    # Without the head: the logits of 20,000 tokens over a vocabulary of 49k are 4 GB.
    return capture_kv(base.model.base_model, inputs)[1]


def rounded(key_values: KeyValues, precision: Precision) -> KeyValues:
    """Keys and values in another floating-point type."""
    dtype: torch.dtype = getattr(torch, precision)
    return {place: (key.to(dtype), value.to(dtype)) for place, (key, value) in key_values.items()}


def piecewise_start(base: BaseModel, template: Template, text: str, length: int, seed: int) -> KeyValues:
    """The base's own keys and values of pieces of the document, read anew one behind the other."""
    front, ids = opening_ids(base, template), text_ids(base, text)
    return exact_key_values(base, [*front, *pieces(ids, max(0, length - len(front)), seed)][:length])


def text_ids(base: BaseModel, text: str) -> list[int]:
    """The tokens of a text alone."""
    ids: list[int] = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
