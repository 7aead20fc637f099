"""What a method is to training and to an experiment.

To training it is parameters, and the loss of each target token of some rows (fit.py brings these into the
training loop). What comes out is a model, perhaps with a prefix, that is scored and writes like any other.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from foreword.base.base_model import BaseModel
from foreword.encoding import EncodedExample
from foreword.errors import UsageError
from foreword.examples import Example
from foreword.prefix import Prefix
from foreword.template import Template


@dataclass(frozen=True)
class AdapterInputs:
    """What a method begins with.

    Attributes:
        base: the shared base model; no method changes a weight of it.
        examples, rows: the training examples, and the same as token ids.
        length: P, number of virtual tokens, for methods that have some.
        choice: a point of the method's grid, such as {"learning_rate": 1e-3}.
        instruction: the task in words, for methods that prompt.
    """

    base: BaseModel
    examples: Sequence[Example]
    rows: Sequence[EncodedExample]
    length: int
    seed: int
    choice: dict[str, Any]
    instruction: str


@dataclass(frozen=True)
class EvaluatedModel:
    """What is measured.

    Attributes:
        base: the model, with the method's weights where it has any.
        template: how sources become text where there is no prefix; None: the base's own.
        trained: numbers in the optimiser.
        kept: numbers that belong to the task afterwards, beside the base model.
    """

    base: BaseModel
    prefix: Prefix | None = None
    template: Template | None = None
    trained: int = 0
    kept: int = 0


@dataclass(frozen=True)
class ContextCost:
    """Positions that what stands in front of every text takes, and how the text behind it is made."""

    tokens: int
    template: Template


class Adapter(Protocol):
    """A method at work.

    Attributes:
        base: the model that computes its losses.
        parameters: what the optimizer changes; empty for methods without training.
        template: how the rows that it is given were made of examples.
    """

    base: BaseModel
    parameters: list[nn.Parameter]
    template: Template

    def losses(self, rows: Sequence[EncodedExample]) -> torch.Tensor:
        """The loss of each target token of `rows`, `[M]`, in nats, with a gradient to the parameters."""

    def finish(self) -> EvaluatedModel:
        """What the parameters stand for now, to be measured."""


def nothing(inputs: AdapterInputs) -> ContextCost:
    """The front of methods that put nothing there."""
    return ContextCost(0, inputs.base.template)


def check_decoder_only(base: BaseModel, what: str) -> None:
    """Raises UsageError: of an encoder-decoder, where `what` are not compared."""
    if base.is_encoder_decoder:
        raise UsageError(
            f"{base.name} is an encoder-decoder: {what} are compared on decoder-only models here; "
            "leave them out"
        )


def with_weights(base: BaseModel, model: Any) -> BaseModel:
    """`base` with another model of its architecture in its place: same tokenizer, template, ways to run."""
    other = copy.copy(base)
    other.model = model
    return other
