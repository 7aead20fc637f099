"""Harness: the same steps for every method: batches, order, schedule, clipping, and choice of the best step.

It does what `train` does for one prefix (a test compares them bit for bit), for whatever has parameters and
a loss. The loss of a step is the mean over its target tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from foreword.base.base_model import BaseModel, batches_by_length
from foreword.encoding import EncodedExample
from foreword.errors import TrainingDiverged
from foreword.research.baselines.protocol import Trainee
from foreword.training.batch_sampler import BatchSampler
from foreword.training.loop import EVALUATION_TOKENS
from foreword.training.prefix_trainer import rate_factor
from foreword.training.settings import TrainingSettings


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
    trainee: Trainee,
    rows: Sequence[EncodedExample],
    dev: Sequence[EncodedExample],
    settings: TrainingSettings,
    on_step: Callable[[int, int], None] = lambda done, steps: None,
) -> Fit:
    """Train, and leave the trainee as it was at its best step; without parameters, only measure it.

    Args:
        dev: examples by which the best step is chosen; at least one.
        settings: steps, batch size, learning rate, schedule, clipping, seed, patience.
        on_step: called with steps done and steps to do.

    Raises:
        TrainingDiverged: a loss or a gradient is not finite.
    """
    curve = {0: mean_loss(trainee, dev)}
    if not trainee.parameters:
        return Fit(0, curve[0], 0, curve)
    steps = settings.steps_for(len(rows))
    every = settings.evaluate_every or max(1, math.ceil(steps / 10))
    order = BatchSampler(
        [row.tokens for row in rows], settings.batch_size, settings.seed, by_length=not base.takes_positions
    )
    optimizer = torch.optim.AdamW(
        trainee.parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    best_step, best_loss, best, worse = 0, math.inf, [], 0
    step = 0
    while step < steps and (settings.patience is None or worse < settings.patience):
        _step(trainee, [rows[index] for index in order.batch(step)], optimizer, settings, step, steps)
        step += 1
        on_step(step, steps)
        if step % every and step < steps:
            continue
        curve[step] = mean_loss(trainee, dev)
        if curve[step] < best_loss:
            best_step, best_loss, worse = step, curve[step], 0
            best = [parameter.detach().clone() for parameter in trainee.parameters]
        else:
            worse += 1
    if not best:
        raise TrainingDiverged(f"no dev loss was finite; take a lower rate than {settings.learning_rate:g}")
    with torch.no_grad():
        for parameter, kept in zip(trainee.parameters, best, strict=True):
            parameter.copy_(kept)
    return Fit(best_step, best_loss, step, curve)


def mean_loss(trainee: Trainee, rows: Sequence[EncodedExample]) -> float:
    """Mean loss per target token, in nats."""
    total, count = 0.0, 0
    with torch.no_grad():
        for indices in batches_by_length(rows, EVALUATION_TOKENS):
            losses_M = trainee.losses([rows[index] for index in indices])
            total += float(losses_M.double().sum())
            count += losses_M.numel()
    return total / count


def _step(
    trainee: Trainee,
    batch: Sequence[EncodedExample],
    optimizer: torch.optim.Optimizer,
    settings: TrainingSettings,
    step: int,
    steps: int,
) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss = trainee.losses(batch).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(trainee.parameters, settings.max_grad_norm or math.inf)
    if not (math.isfinite(float(loss.detach())) and math.isfinite(float(norm))):
        raise TrainingDiverged(
            f"loss {float(loss.detach()):g}, gradient {float(norm):g} at step {step + 1}; take a lower "
            f"learning rate than {settings.learning_rate:g}"
        )
    warmup = settings.warmup_steps(steps)
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * rate_factor(step, warmup=warmup, steps=steps)
    optimizer.step()
