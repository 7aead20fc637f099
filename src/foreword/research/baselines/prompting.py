"""Prompting: no training at all; the base model alone, with an instruction, or with demonstrations.

A text in front of every source is the prefix that the base model itself makes of its tokens: the same
numbers as if each row began with it (tested), computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from foreword.base.base_model import BaseModel
from foreword.base.loss import target_losses
from foreword.base.prefix_batch import PrefixBatch
from foreword.encoding import EncodedExample
from foreword.errors import UnsupportedArchitecture, UsageError
from foreword.prefix import Prefix
from foreword.prefix_sizes import tensor_names
from foreword.research.baselines.protocol import AdapterInputs, ContextCost, EvaluatedModel
from foreword.template import Template
from foreword.training.initialization import activations

FORMS = ("text", "chat")


class Prompted:
    """A base model behind a text, or with a template of its own; nothing to train."""

    def __init__(self, base: BaseModel, prefix: Prefix | None, template: Template) -> None:
        self.base = base
        self.prefix = prefix
        self.template = template
        self.parameters: list[nn.Parameter] = []

    def losses(self, rows: Sequence[EncodedExample]) -> torch.Tensor:
        """The loss of each target token, `[M]`."""
        prefixes = PrefixBatch.stack([self.prefix] * len(rows), self.base.device)
        return target_losses(self.base.model, self.base.batch(rows, prefixes, "flat"), prefixes)

    def finish(self) -> EvaluatedModel:
        """What there was from the beginning."""
        return EvaluatedModel(self.base, self.prefix, self.template)


def alone(inputs: AdapterInputs) -> Prompted:
    """The base model with nothing but the source."""
    return Prompted(inputs.base, None, inputs.base.template)


def zero_shot(inputs: AdapterInputs) -> Prompted:
    """An instruction: as text in front, or as the system message of the base's chat template."""
    base = inputs.base
    form = inputs.choice["form"]
    if form == "text":
        return Prompted(base, behind(base, _ids(base, f"{inputs.instruction}\n")), base.template)
    if form != "chat":
        raise UsageError(f"form is {form!r}; expected {' or '.join(FORMS)}")
    return Prompted(base, None, _as_chat(inputs))


def has_form(base: BaseModel, choice: dict[str, Any]) -> bool:
    """Whether the base can be asked in this form: many have no chat template."""
    return choice["form"] != "chat" or bool(getattr(base.tokenizer, "chat_template", None))


def few_shot(inputs: AdapterInputs) -> Prompted:
    """The instruction, and the first training examples as demonstrations, written as every row is."""
    base = inputs.base
    return Prompted(base, behind(base, _demonstrations(inputs)), base.template)


def front(inputs: AdapterInputs) -> ContextCost:
    """The positions that the choice takes: an instruction, and demonstrations."""
    base = inputs.base
    if inputs.choice.get("form") == "chat":
        return ContextCost(0, _as_chat(inputs))
    return ContextCost(len(_demonstrations(inputs)), base.template)


def behind(base: BaseModel, ids: Sequence[int]) -> Prefix:
    """The prefix that stands for these tokens in front of every text.

    Raises:
        UnsupportedArchitecture: a hybrid, whose states a prefix does not hold.
    """
    if base.is_hybrid:
        raise UnsupportedArchitecture(
            f"{base.name} is a hybrid: a prefix of a text's own keys and values does not stand for the text "
            "there, because the layers beside attention do not see it. Leave the method out, or put the text "
            "in front of every source"
        )
    base.max_text_tokens(len(ids))
    tensors = tensor_names(activations(base, ids, ids, len(ids)))
    return Prefix(tensors=tensors, base=base.identity, template=base.template, positions=base.positions)


def _demonstrations(inputs: AdapterInputs) -> list[int]:
    """The instruction, and so many of the first examples as the choice has shots."""
    ids = _ids(inputs.base, f"{inputs.instruction}\n")
    for row in inputs.rows[: inputs.choice.get("shots", 0)]:
        ids += [*row.source_ids, *row.target_ids]
    return ids


def _as_chat(inputs: AdapterInputs) -> Template:
    return Template(style="chat", end=inputs.base.template.end, system=inputs.instruction)


def _ids(base: BaseModel, text: str) -> list[int]:
    ids: list[int] = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    return [base.tokenizer.bos_token_id, *ids] if base.template.begin else ids
