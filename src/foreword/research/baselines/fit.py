"""Training of any method by the one training loop: same batches, order, schedule, clipping, choice of step.

A method is what the loop trains (its parameters) and what it minimises (its own losses), in one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from foreword.base.base_model import BaseModel
from foreword.base.prefix_batch import KeyValues, PrefixBatch
from foreword.encoding import EncodedExample
from foreword.errors import TrainingDiverged
from foreword.prefix import Positions
from foreword.research.baselines.protocol import Adapter
from foreword.template import Placement
from foreword.training import loop
from foreword.training.objective import RowLosses
from foreword.training.settings import TrainingSettings
from foreword.training.trainer import Trainer


@dataclass(frozen=True)
class Fit:
    """How training went.

    Attributes:
        step, dev_loss: that were kept: the step with the lowest dev loss.
        steps: that were made; fewer than asked for if the patience ended.
        curve: dev loss by step.
    """

    step: int
    dev_loss: float
    steps: int
    curve: dict[int, float]


def fit(
    base: BaseModel,
    adapter: Adapter,
    rows: Sequence[EncodedExample],
    dev: Sequence[EncodedExample],
    settings: TrainingSettings,
    on_step: Callable[[int, int], None] = lambda done, steps: None,
) -> Fit:
    """Train, and leave the adapter as it was at its best step; without parameters, only measure it.

    Args:
        dev: examples by which the best step is chosen; at least one.
        settings: steps, batch size, learning rate, schedule, clipping, seed, patience.
        on_step: called with steps done and steps to do.

    Raises:
        TrainingDiverged: a loss or a gradient is not finite.
    """
    if not adapter.parameters:
        loss = mean_loss(adapter, dev)
        return Fit(0, loss, 0, {0: loss})
    method = _InTraining(adapter)
    resolved = settings.resolve(base.geometry, len(rows))
    trainer = Trainer(settings, resolved, method, rows, dev, by_length=not base.packs_rows)
    curve: dict[int, float] = {}
    loop.run(
        base,
        iter([trainer]),
        objective=method,
        start_competes=False,  # what is compared is what each method learns
        on_step=lambda trainer, report: on_step(trainer.step, trainer.steps),
        on_evaluation=lambda trainer, found: curve.update({trainer.step: found.loss}),
        on_finish=lambda trainer: None,
        on_divergence=_raise,
        should_stop=lambda: False,
    )
    best = trainer.best
    if not best.tensors:
        raise TrainingDiverged(f"no dev loss was finite; take a lower rate than {settings.learning_rate:g}")
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            parameter.copy_(best.tensors[name])
    return Fit(best.step, best.dev_loss, trainer.step, curve)


def mean_loss(adapter: Adapter, rows: Sequence[EncodedExample]) -> float:
    """Mean loss per target token, in nats."""
    method = _InTraining(adapter)
    return loop.mean_loss(adapter.base, method, rows, method)


@dataclass(frozen=True)
class _InTraining:
    """An adapter as the loop's trainable and objective.

    Its pass is its own (a copy of the model with modules in it, a prefix that PEFT's network makes): it
    brings its parameters into that itself, and the loop puts no prefix in front.
    """

    adapter: Adapter
    placement: Placement = "prefix"
    positions: Positions = "text-after-prefix"

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        return ((str(place), parameter) for place, parameter in enumerate(self.adapter.parameters))

    def key_values(self) -> KeyValues:
        return {}

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.named_parameters()}

    def count(self, row: EncodedExample) -> int:
        return len(row.target_ids)

    def losses(
        self, base: BaseModel, rows: Sequence[EncodedExample], prefixes: PrefixBatch | None
    ) -> RowLosses:
        return RowLosses(self.adapter.losses(rows), tuple(map(self.count, rows)))


def _raise(trainer: Trainer, error: TrainingDiverged) -> None:
    raise error
