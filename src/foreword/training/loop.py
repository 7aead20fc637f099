"""The training loop: one pass of the frozen base model over the rows of one or many learners.

Every row meets only its own learner's prefix. The gradient stops at the compiled keys and values;
each learner takes its own from there, so learners share nothing but the pass.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from foreword.base import BaseModel, batches_by_length
from foreword.checkpointing import gradient_checkpointing
from foreword.encoding import EncodedExample
from foreword.errors import TrainingDiverged
from foreword.losses import target_losses
from foreword.parameterization import Compiled
from foreword.row_prefixes import RowPrefixes, StreamBlock
from foreword.training.learner import Learner

EVALUATION_TOKENS = 2048
"""Tokens of one forward pass when a dev loss is measured; only memory depends on it."""


@dataclass(frozen=True)
class StepReport:
    """What one step did.

    Attributes:
        loss: of the step, as its reduction defines it.
        token_loss: mean loss per target token, in nats, whatever the reduction.
        tokens: real tokens the base model read.
        targets: target tokens among them.
        seconds: wall time of the step, without evaluations.
        norm: of the gradient before clipping.
        learning_rate: that the step was made with.
    """

    loss: float
    token_loss: float
    tokens: int
    targets: int
    seconds: float
    norm: float
    learning_rate: float


def train_step(base: BaseModel, learner: Learner) -> StepReport:
    """One optimiser step of one learner.

    Raises:
        TrainingDiverged: the loss is NaN or infinite; the learner is left as it was before the step.
    """
    begun = time.perf_counter()
    rows = learner.batch()
    settings = learner.settings
    compiled = learner.parameters()
    leaves = _leaves(compiled, base.device)
    targets = sum(len(row.target_ids) for row in rows)
    loss = token_loss = 0.0
    with gradient_checkpointing(base.model, settings.gradient_checkpointing):
        for part in _parts(rows, settings.accumulate):
            prefixes = _same_for_all(leaves, len(part))
            batch = base.batch(part, prefixes, "flat")
            losses_M = target_losses(base.model, batch, prefixes)
            summed = losses_M.sum()
            # Both reductions are one sum over a number known beforehand, so parts simply add up.
            scaled = summed / (targets if settings.reduction == "token" else len(rows))
            scaled.backward()
            loss += float(scaled.detach())
            token_loss += float(summed.detach()) / targets
    if not math.isfinite(loss):
        raise TrainingDiverged(
            f"the loss became {loss} at step {learner.step + 1}; take a lower learning rate than "
            f"{settings.learning_rate:g}"
        )
    gradients: Compiled = {
        stream: (
            _gradient(key).to(compiled[stream][0].device),
            _gradient(value).to(compiled[stream][0].device),
        )
        for stream, (key, value) in leaves.items()
    }
    rate = learner.learning_rate()
    norm = learner.update(compiled, gradients)
    return StepReport(
        loss=loss,
        token_loss=token_loss,
        tokens=sum(row.tokens for row in rows),
        targets=targets,
        seconds=time.perf_counter() - begun,
        norm=norm,
        learning_rate=rate,
    )


def dev_loss(base: BaseModel, learner: Learner) -> float:
    """Mean loss per target token of the learner's dev examples under its prefix as it is now."""
    with torch.no_grad():
        compiled = {s: (k.to(base.device), v.to(base.device)) for s, (k, v) in learner.parameters().items()}
        total, count = 0.0, 0
        for indices in batches_by_length(learner.dev, EVALUATION_TOKENS):
            prefixes = _same_for_all(compiled, len(indices))
            batch = base.batch([learner.dev[i] for i in indices], prefixes, "flat")
            losses_M = target_losses(base.model, batch, prefixes)
            total += float(losses_M.double().sum())
            count += losses_M.numel()
    return total / count


def run(
    base: BaseModel,
    learner: Learner,
    *,
    on_step: Callable[[StepReport], None],
    on_evaluation: Callable[[float], None],
    should_stop: Callable[[], bool],
) -> None:
    """Step until the learner has finished or `should_stop` says so."""
    if learner.step == 0 and learner.dev:
        on_evaluation(dev_loss(base, learner))
    while not learner.finished and not should_stop():
        report = train_step(base, learner)
        on_step(report)
        if learner.due_for_evaluation():
            loss = dev_loss(base, learner)
            learner.note_dev_loss(loss)
            on_evaluation(loss)


def _parts(rows: Sequence[EncodedExample], parts: int) -> list[Sequence[EncodedExample]]:
    size = math.ceil(len(rows) / parts)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _leaves(compiled: Compiled, device: torch.device) -> Compiled:
    # Cut from the parameterization's graph: it is run backwards once a step, not once a part.
    return {
        stream: (
            key.detach().to(device).clone().requires_grad_(),
            value.detach().to(device).clone().requires_grad_(),
        )
        for stream, (key, value) in compiled.items()
    }


def _same_for_all(compiled: Compiled, rows: int) -> RowPrefixes:
    blocks = {stream: StreamBlock(k[None], v[None], (k.shape[2],)) for stream, (k, v) in compiled.items()}
    return RowPrefixes(blocks=blocks, of_row=(0,) * rows)


def _gradient(leaf: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
