"""What a training run minimises, and what it changes: the two interfaces that the training loop works on.

An objective says what loss the rows of one pass of the model have. A trainable says which parameters an
optimizer changes and how they enter the pass: as a prefix in front of a frozen model's rows, or as weights of
the model itself. The loop (loop.py), the trainer with its schedule and checkpoints (trainer.py), and through
them `train`, `train_many` and the baselines that are compared with prefixes know no more than this.

Shapes: B rows, M loss terms of all rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from foreword.base.base_model import BaseModel
from foreword.base.loss import target_losses
from foreword.base.prefix_batch import KeyValues, PrefixBatch
from foreword.encoding import EncodedExample
from foreword.prefix import Positions
from foreword.template import Placement


@dataclass(frozen=True)
class RowLosses:
    """The loss terms of the rows of one pass.

    Attributes:
        losses_M: float32, with a gradient; ordered by row.
        counts: how many of them each of the B rows has.
        measures: what else is known of each term, by name: float32 `[M]`, without a gradient.
    """

    losses_M: torch.Tensor
    counts: tuple[int, ...]
    measures: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def row_M(self) -> torch.Tensor:
        """The row that each term belongs to."""
        row_M = torch.arange(len(self.counts)).repeat_interleave(torch.tensor(self.counts))
        return row_M.to(self.losses_M.device, non_blocking=True)


class Objective(Protocol):
    """What is minimised: a mean of loss terms, over the terms of a step or over its rows.

    A step's rows can be divided into several passes: `count` is known without one, so every pass can weigh
    its terms by those of the whole step, and the gradients of the passes add up to that of the mean.
    """

    def count(self, row: EncodedExample) -> int:
        """How many loss terms a row has."""

    def losses(
        self, base: BaseModel, rows: Sequence[EncodedExample], prefixes: PrefixBatch | None
    ) -> RowLosses:
        """One pass of the model over `rows`, each behind its own prefix, and the loss terms of the rows."""


class CrossEntropy:
    """Cross entropy of the target's tokens, in nats: a term for each of them."""

    def count(self, row: EncodedExample) -> int:
        """The target's tokens."""
        return len(row.target_ids)

    def losses(
        self, base: BaseModel, rows: Sequence[EncodedExample], prefixes: PrefixBatch | None
    ) -> RowLosses:
        """One pass, whose logits are computed only where they predict a target."""
        batch = base.batch(rows, prefixes, "flat")
        return RowLosses(target_losses(base.model, batch, prefixes), batch.targets)


CROSS_ENTROPY = CrossEntropy()


class Trainable(Protocol):
    """What an optimizer changes.

    Parameters can enter a pass in two ways. Those of a prefix make keys and values, once a step; the loop
    puts them in front of the rows and gives back the gradient that the passes left in them. Those of the
    model itself (LoRA modules, all weights) are in the pass already, which leaves the gradient in them.
    """

    @property
    def placement(self) -> Placement:
        """Of the prefix: see `Template.placement`."""

    @property
    def positions(self) -> Positions:
        """Of the prefix: see `Prefix.positions`."""

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """What the optimizer changes, by the names that it has in a checkpoint."""

    def key_values(self) -> KeyValues:
        """The prefix that the parameters stand for now; empty for parameters of the model itself."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is kept of the best step: the finished result, apart from the parameters."""
