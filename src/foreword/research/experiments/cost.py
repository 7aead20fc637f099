"""Cost: how long an experiment will take, told from a short trial before it begins."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from foreword.base.base_model import BaseModel
from foreword.encoding import encode_example
from foreword.examples import Example
from foreword.training import train

TRIAL_EXAMPLES = 16
TRIAL_STEPS = 2


@dataclass(frozen=True)
class Work:
    """What is still to be done.

    Attributes:
        train_rows, score_rows: examples to train on (each as often as it comes) and to score.
        train_tokens, score_tokens: that the base model reads for them, from the mean of each owner.
    """

    train_rows: int = 0
    train_tokens: float = 0.0
    score_rows: int = 0
    score_tokens: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.train_rows + other.train_rows,
            self.train_tokens + other.train_tokens,
            self.score_rows + other.score_rows,
            self.score_tokens + other.score_tokens,
        )


@dataclass(frozen=True)
class Rates:
    """Seconds for a token that is trained on, and for one that is scored."""

    train: float
    score: float

    def seconds(self, work: Work) -> float:
        """How long `work` takes at these rates."""
        return work.train_tokens * self.train + work.score_tokens * self.score


def measure_rates(base: BaseModel, examples: Sequence[Example], *, length: int) -> Rates:
    """Time two steps of training and one scoring of a few examples, short ones and long ones."""
    counted = sorted(
        ((encode_example(example, base.tokenizer, base.template)[0].tokens, example) for example in examples),
        key=lambda pair: pair[0],
    )
    count = min(TRIAL_EXAMPLES, len(counted))
    chosen = [counted[(2 * place + 1) * len(counted) // (2 * count)] for place in range(count)]
    tokens, rows = sum(tokens for tokens, _ in chosen), [example for _, example in chosen]
    base.token_losses(rows)  # the first pass is slower than those that follow
    begun = time.perf_counter()
    prefix = train(base, rows, length=length, steps=TRIAL_STEPS, batch_size=count)
    trained = time.perf_counter()
    base.token_losses(rows, prefix)
    scored = time.perf_counter()
    return Rates((trained - begun) / TRIAL_STEPS / tokens, (scored - trained) / tokens)
