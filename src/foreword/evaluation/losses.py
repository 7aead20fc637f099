"""Losses: the mean loss per target token over examples, and the perplexity it stands for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from foreword.base.base_model import BaseModel
from foreword.encoding import encode_example
from foreword.errors import BadExamples
from foreword.examples import Example
from foreword.prefix import Prefix
from foreword.template import Template

EXAMPLES_BETWEEN_REPORTS = 64


@dataclass(frozen=True)
class TokenLoss:
    """A mean over target tokens, end tokens among them: long targets weigh more than short ones.

    Attributes:
        mean: in nats.
        tokens: how many target tokens.
    """

    mean: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(mean); infinite where that is too large for a float."""
        try:
            return math.exp(self.mean)
        except OverflowError:
            return math.inf


def token_loss(
    base: BaseModel,
    examples: Sequence[Example],
    prefix: Prefix | None = None,
    *,
    template: Template | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> TokenLoss:
    """The mean loss per target token, of all examples together.

    Args:
        template: how sources become text when there is no prefix; default: the base's own.
        on_progress: called with examples done and examples in all, now and then.

    Raises:
        BadExamples: no examples.
        WindowExceeded: an example that does not fit behind the prefix; nothing is cut here.
        GeometryMismatch, WrongBaseModel: a prefix of another base.
    """
    if not examples:
        raise BadExamples("there are no examples to evaluate; give at least one")
    chosen = prefix.template if prefix is not None else (template or base.template)
    for number, example in enumerate(examples):  # before minutes of work, not after them
        encoded, _ = encode_example(example, base.tokenizer, chosen)
        base.check_window(encoded, 0 if prefix is None else prefix.length, number)
    total, tokens = 0.0, 0
    # Of like length together, so that a part computes little padding on models that need it.
    order = sorted(examples, key=lambda example: len(str(example.source)) + len(example.target))
    for start in range(0, len(order), EXAMPLES_BETWEEN_REPORTS):
        part = order[start : start + EXAMPLES_BETWEEN_REPORTS]
        for losses in base.token_losses(part, prefix, template=template):
            total += float(losses.double().sum())
            tokens += losses.numel()
        if on_progress is not None:
            on_progress(start + len(part), len(order))
    return TokenLoss(total / tokens, tokens)
