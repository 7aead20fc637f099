"""The training loop: one pass of the frozen base model over the rows of one or many learners.

Every row meets only its own learner's prefix. The gradient stops at the compiled keys and values;
each learner takes its own from there, so learners share nothing but the pass.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from foreword.base.activation_checkpointing import gradient_checkpointing
from foreword.base.base_model import BaseModel, batches_by_length
from foreword.base.loss import target_losses
from foreword.base.prefix_batch import PrefixBatch
from foreword.encoding import EncodedExample
from foreword.errors import TrainingDiverged
from foreword.training.parameterization import KeyValues
from foreword.training.prefix_trainer import PrefixTrainer

EVALUATION_TOKENS = 2048
"""Tokens of one forward pass when a dev loss is measured; only memory depends on it."""

Part = list[tuple[int, EncodedExample]]
"""Rows of one pass of the base model: which learner each belongs to, and its example."""


@dataclass(frozen=True)
class StepReport:
    """What one step of one learner did.

    Attributes:
        loss: of the step, as its reduction defines it.
        token_loss: mean loss per target token, in nats, whatever the reduction.
        tokens: real tokens the base model read.
        targets: target tokens among them.
        seconds: wall time of the step, without evaluations; learners that share a pass share it.
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


def train_step(
    base: BaseModel,
    trainers: Sequence[PrefixTrainer],
    *,
    pass_tokens: int | None = None,
    isolated: bool = False,
) -> list[StepReport | TrainingDiverged]:
    """One optimiser step of each learner.

    Args:
        pass_tokens: most tokens of one pass of the base model; more are divided into several. None: a
            learner's own `gradient_accumulation` decides, and all share a pass.
        isolated: a pass of its own for every learner: it computes bit for bit what it would alone.

    Returns:
        For each learner its report; or an error if its loss is not finite, and then it is left as it
        was before the step. Neither touches the others.
    """
    begun = time.perf_counter()
    rows = [trainer.batch() for trainer in trainers]
    compiled = [trainer.parameters() for trainer in trainers]
    leaves = [_detached(each, base.device) for each in compiled]
    targets = [sum(len(row.target_ids) for row in rows_of_owner) for rows_of_owner in rows]
    # Both reductions are one sum over a number known beforehand, so passes simply add up.
    divisors = [
        targets[index] if trainer.settings.reduction == "token" else len(rows[index])
        for index, trainer in enumerate(trainers)
    ]
    sums = [0.0] * len(trainers)
    with gradient_checkpointing(base.model, any(each.settings.gradient_checkpointing for each in trainers)):
        for part in _parts(trainers, rows, pass_tokens, isolated):
            for index, summed in _backward(base, trainers, part, leaves, divisors).items():
                sums[index] += summed
    seconds = time.perf_counter() - begun
    reports: list[StepReport | TrainingDiverged] = []
    for index, trainer in enumerate(trainers):
        if not math.isfinite(sums[index]):
            reports.append(
                TrainingDiverged(
                    f"the loss became {sums[index]} at step {trainer.step + 1}; take a lower learning rate "
                    f"than {trainer.settings.learning_rate:g}"
                )
            )
            continue
        rate = trainer.learning_rate()
        try:
            norm = trainer.update(compiled[index], _gradients(compiled[index], leaves[index]))
        except TrainingDiverged as error:
            reports.append(error)
            continue
        reports.append(
            StepReport(
                loss=sums[index] / divisors[index],
                token_loss=sums[index] / targets[index],
                tokens=sum(row.tokens for row in rows[index]),
                targets=targets[index],
                seconds=seconds,
                norm=norm,
                learning_rate=rate,
            )
        )
    return reports


def dev_loss(base: BaseModel, trainer: PrefixTrainer) -> float:
    """Mean loss per target token of the learner's dev examples under its prefix as it is now."""
    with torch.no_grad():
        compiled = {s: (k.to(base.device), v.to(base.device)) for s, (k, v) in trainer.parameters().items()}
        total, count = 0.0, 0
        for indices in batches_by_length(trainer.dev, EVALUATION_TOKENS):
            of_row = [0] * len(indices)
            prefixes = PrefixBatch.from_tensors([compiled], of_row, [trainer.placement], [trainer.positions])
            batch = base.batch([trainer.dev[i] for i in indices], prefixes, "flat")
            losses_M = target_losses(base.model, batch, prefixes)
            total += float(losses_M.double().sum())
            count += losses_M.numel()
    return total / count


def run(
    base: BaseModel,
    waiting: Iterator[PrefixTrainer],
    *,
    places: int = 1,
    pass_tokens: int | None = None,
    isolated: bool = False,
    on_step: Callable[[PrefixTrainer, StepReport], None],
    on_evaluation: Callable[[PrefixTrainer, float], None],
    on_finish: Callable[[PrefixTrainer], None],
    on_divergence: Callable[[PrefixTrainer, TrainingDiverged], None],
    should_stop: Callable[[], bool],
) -> None:
    """Step all learners to their end; a new one enters as a place falls free.

    Args:
        waiting: learners, made when they are asked for.
        places: how many train at once.
        on_finish: called when a learner has done its steps, or run out of patience.
        on_divergence: called when a learner's loss is not finite; it leaves, the others go on.
        should_stop: asked before every step.
    """
    active: list[PrefixTrainer] = []
    while True:
        for trainer in [each for each in active if each.finished]:
            active.remove(trainer)
            on_finish(trainer)
        while len(active) < places and (entering := next(waiting, None)) is not None:
            if entering.finished:  # resumed, with nothing left to do
                on_finish(entering)
                continue
            if entering.step == 0 and entering.dev:
                on_evaluation(entering, dev_loss(base, entering))
            active.append(entering)
        if not active or should_stop():
            return
        reports = train_step(base, active, pass_tokens=pass_tokens, isolated=isolated)
        for trainer, report in zip(tuple(active), reports, strict=True):
            if isinstance(report, TrainingDiverged):
                active.remove(trainer)
                on_divergence(trainer, report)
                continue
            on_step(trainer, report)
            if trainer.due_for_evaluation():
                loss = dev_loss(base, trainer)
                trainer.note_dev_loss(loss)
                on_evaluation(trainer, loss)


def _parts(
    trainers: Sequence[PrefixTrainer],
    rows: Sequence[Sequence[EncodedExample]],
    pass_tokens: int | None,
    isolated: bool,
) -> list[Part]:
    """Divide the rows of a step into passes."""
    if pass_tokens is None or isolated:
        per_learner: list[list[Part]] = []
        for index, (trainer, rows_of_owner) in enumerate(zip(trainers, rows, strict=True)):
            size = math.ceil(len(rows_of_owner) / trainer.settings.gradient_accumulation)
            starts = range(0, len(rows_of_owner), size)
            per_learner.append(
                [[(index, row) for row in rows_of_owner[start : start + size]] for start in starts]
            )
        if isolated:
            return [part for own in per_learner for part in own]
        longest = max(len(own) for own in per_learner)
        return [
            [row for own in per_learner if place < len(own) for row in own[place]] for place in range(longest)
        ]
    parts: list[Part] = []
    filled = 0
    for index, rows_of_owner in enumerate(rows):
        for row in rows_of_owner:
            if not parts or filled + _new_tokens(index, row, parts[-1]) > pass_tokens:
                parts.append([])
                filled = 0
            filled += _new_tokens(index, row, parts[-1])
            parts[-1].append((index, row))
    return parts


def _new_tokens(index: int, row: EncodedExample, part: Part) -> int:
    """Tokens that a row adds to a pass: its source is there already if the row before has the same."""
    shares = bool(part) and part[-1][0] == index and part[-1][1].source_ids == row.source_ids
    return row.tokens - len(row.source_ids) * shares


def _backward(
    base: BaseModel,
    trainers: Sequence[PrefixTrainer],
    part: Part,
    leaves: Sequence[KeyValues],
    divisors: Sequence[int],
) -> dict[int, float]:
    """Gradients of one pass, added to the leaves; returns each learner's sum of token losses."""
    members = list(dict.fromkeys(index for index, _ in part))
    place = {index: number for number, index in enumerate(members)}
    prefixes = PrefixBatch.from_tensors(
        [leaves[index] for index in members],
        [place[i] for i, _ in part],
        [trainers[index].placement for index in members],
        [trainers[index].positions for index in members],
    )
    batch = base.batch([row for _, row in part], prefixes, "flat")
    losses_M = target_losses(base.model, batch, prefixes)
    owner_M = torch.tensor([place[i] for i, _ in part], device=losses_M.device)[batch.row_M]
    sums = torch.zeros(len(members), device=losses_M.device).index_add(0, owner_M, losses_M)
    weights = torch.tensor([1 / divisors[index] for index in members], device=sums.device)
    (sums * weights).sum().backward()
    return dict(zip(members, sums.tolist(), strict=True))


def _detached(compiled: KeyValues, device: torch.device) -> KeyValues:
    # Cut from the parameterization's graph: it is run backwards once a step, not once a pass.
    return {
        stream: (
            key.detach().to(device).clone().requires_grad_(),
            value.detach().to(device).clone().requires_grad_(),
        )
        for stream, (key, value) in compiled.items()
    }


def _gradients(compiled: KeyValues, leaves: KeyValues) -> KeyValues:
    def gradient(leaf: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(like) if leaf.grad is None else leaf.grad.to(like.device)

    return {
        stream: (gradient(leaves[stream][0], key), gradient(leaves[stream][1], value))
        for stream, (key, value) in compiled.items()
    }
