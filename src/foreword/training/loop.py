"""The training loop: one pass of the model over the rows of one or many trainers.

Every row meets only its own trainer's prefix. The gradient stops at the keys and values; each trainer takes
its own from there, so trainers share nothing but the pass. Parameters that belong to the model itself get
their gradient in the pass (objective.py).

Shapes: M loss terms of all rows of a pass.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch

from foreword.base.base_model import BaseModel
from foreword.base.batch import batches_by_length
from foreword.base.device_memory import tokens_at_once
from foreword.base.prefix_batch import KeyValues, PrefixBatch
from foreword.encoding import EncodedExample
from foreword.errors import TrainingDiverged
from foreword.training.objective import CROSS_ENTROPY, Objective, RowLosses, Trainable
from foreword.training.trainer import Trainer

EVALUATION_TOKENS = 2048
"""Tokens of one forward pass when a dev loss is measured on a CPU; only memory depends on it."""

Part = list[tuple[int, EncodedExample]]
"""Rows of one pass of the model: which trainer each belongs to, and its example."""


@dataclass(frozen=True)
class StepReport:
    """What one step of one trainer did.

    Attributes:
        loss: of the step, as its reduction defines it.
        token_loss: mean of the loss terms, whatever the reduction: loss per target token, in nats; of
            preferences, per pair of answers.
        tokens: real tokens the model read.
        targets: loss terms: target tokens, or pairs.
        seconds: wall time of the step, without evaluations; trainers that share a pass share it.
        norm: of the gradient before clipping.
        learning_rate: that the step was made with.
        measures: what the objective measures beside the loss, as means over the terms.
    """

    loss: float
    token_loss: float
    tokens: int
    targets: int
    seconds: float
    norm: float
    learning_rate: float
    measures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """What was measured on dev examples.

    Attributes:
        loss: mean of the loss terms; under cross entropy, the loss per target token in nats.
        measures: what the objective measures beside it, as means over the terms.
    """

    loss: float
    measures: Mapping[str, float] = field(default_factory=dict)


def run(
    base: BaseModel,
    waiting: Iterator[Trainer],
    *,
    objective: Objective = CROSS_ENTROPY,
    concurrent: int = 1,
    max_batch_tokens: int | None = None,
    isolated: bool = False,
    start_competes: bool = True,
    on_step: Callable[[Trainer, StepReport], None],
    on_evaluation: Callable[[Trainer, Evaluation], None],
    on_finish: Callable[[Trainer], None],
    on_divergence: Callable[[Trainer, TrainingDiverged], None],
    should_stop: Callable[[], bool],
    should_leave: Callable[[Trainer], bool] = lambda trainer: False,
    on_leave: Callable[[Trainer], None] = lambda trainer: None,
) -> None:
    """Step all trainers to their end; a new one enters as a place falls free.

    Args:
        waiting: trainers, made when they are asked for.
        objective: what all of them minimise.
        concurrent: how many train at once.
        max_batch_tokens, isolated: see `train_step`.
        start_competes: a start that no step betters by dev loss is what a trainer ends in.
        on_finish: called when a trainer has done its steps, or run out of patience.
        on_divergence: called when a trainer's loss is not finite; it leaves, the others go on.
        should_stop: asked before every step.
        should_leave: asked of each trainer before every step; one that is to leave is handed to `on_leave`
            as it is, and the others go on.
    """
    active: list[Trainer] = []
    while True:
        for trainer in [each for each in active if each.finished]:
            active.remove(trainer)
            on_finish(trainer)
        for trainer in [each for each in active if should_leave(each)]:
            active.remove(trainer)
            on_leave(trainer)
        while len(active) < concurrent and (entering := next(waiting, None)) is not None:
            if entering.finished:  # resumed, with nothing left to do
                on_finish(entering)
                continue
            if entering.step == 0 and entering.dev and not entering.best.tensors:
                found = evaluate(base, entering.trained, entering.dev, objective)
                if start_competes:
                    entering.note_dev_loss(found.loss)
                on_evaluation(entering, found)
            active.append(entering)
        if not active or should_stop():
            return
        reports = train_step(
            base, active, objective=objective, max_batch_tokens=max_batch_tokens, isolated=isolated
        )
        for trainer, report in zip(tuple(active), reports, strict=True):
            if isinstance(report, TrainingDiverged):
                active.remove(trainer)
                on_divergence(trainer, report)
                continue
            on_step(trainer, report)
            if trainer.due_for_evaluation():
                found = evaluate(base, trainer.trained, trainer.dev, objective)
                trainer.note_dev_loss(found.loss)
                on_evaluation(trainer, found)


def train_step(
    base: BaseModel,
    trainers: Sequence[Trainer],
    *,
    objective: Objective = CROSS_ENTROPY,
    max_batch_tokens: int | None = None,
    isolated: bool = False,
) -> list[StepReport | TrainingDiverged]:
    """One optimizer step of each trainer.

    Args:
        max_batch_tokens: most tokens of one pass of the model; more are divided into several. None: only a
            trainer's own gradient accumulation divides.
        isolated: passes of its own for every trainer: on a CPU it computes bit for bit what it would alone.

    Returns:
        For each trainer its report; or an error if its loss is not finite, and then it is left as it
        was before the step. Neither touches the others.
    """
    start_time = time.perf_counter()
    rows = [trainer.batch() for trainer in trainers]
    key_values = [trainer.begin() for trainer in trainers]
    leaves = [_detached(each, base.device) for each in key_values]
    terms = [sum(map(objective.count, rows_of_trainer)) for rows_of_trainer in rows]
    # Both reductions are one sum over a number known beforehand, so passes simply add up.
    divisors = [
        terms[index] if trainer.settings.reduction == "token" else len(rows[index])
        for index, trainer in enumerate(trainers)
    ]
    sums = [0.0] * len(trainers)
    measured: list[dict[str, float]] = [{} for _ in trainers]
    checkpointing: AbstractContextManager[None] = contextlib.nullcontext()
    if any(each.settings.gradient_checkpointing for each in trainers):
        from foreword.base.gradient_checkpointing import gradient_checkpointing  # few runs need it

        checkpointing = gradient_checkpointing(base.model)
    with checkpointing:
        for part in _parts(trainers, rows, max_batch_tokens, isolated):
            for index, found in _backward(base, trainers, objective, part, leaves, divisors).items():
                sums[index] += found.loss
                for name, value in found.measures.items():
                    measured[index][name] = measured[index].get(name, 0.0) + value
    seconds = time.perf_counter() - start_time
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
            norm = trainer.update(key_values[index], _gradients(key_values[index], leaves[index]))
        except TrainingDiverged as error:
            reports.append(error)
            continue
        reports.append(
            StepReport(
                loss=sums[index] / divisors[index],
                token_loss=sums[index] / terms[index],
                tokens=sum(row.tokens for row in rows[index]),
                targets=terms[index],
                seconds=seconds,
                norm=norm,
                learning_rate=rate,
                measures={name: value / terms[index] for name, value in measured[index].items()},
            )
        )
    return reports


def mean_loss(
    base: BaseModel,
    trained: Trainable,
    rows: Sequence[EncodedExample],
    objective: Objective = CROSS_ENTROPY,
) -> float:
    """Mean of the loss terms of `rows`; under cross entropy, the loss per target token in nats."""
    return evaluate(base, trained, rows, objective).loss


@torch.no_grad()
def evaluate(
    base: BaseModel,
    trained: Trainable,
    rows: Sequence[EncodedExample],
    objective: Objective = CROSS_ENTROPY,
) -> Evaluation:
    """Loss and measures of `rows`."""
    key_values = {
        stream: (key.to(base.device), value.to(base.device))
        for stream, (key, value) in trained.key_values().items()
    }
    total, count = 0.0, 0
    measured: dict[str, float] = {}
    most = tokens_at_once(base.model, base.device, gradient=False) or EVALUATION_TOKENS
    longest = max((key.shape[-2] for key, _ in key_values.values()), default=0)
    for indices in batches_by_length(rows, most, longest):
        part = [rows[index] for index in indices]
        found = _losses(base, objective, part, [0] * len(part), [trained], [key_values])
        total += _sum(found.losses_M)
        count += found.losses_M.numel()
        for name, value_M in found.measures.items():
            measured[name] = measured.get(name, 0.0) + _sum(value_M)
    return Evaluation(total / count, {name: value / count for name, value in measured.items()})


def _sum(value_M: torch.Tensor) -> float:
    return float(value_M.cpu().double().sum())  # float64 there: MPS has none


def _losses(
    base: BaseModel,
    objective: Objective,
    rows: Sequence[EncodedExample],
    member_B: Sequence[int],
    members: Sequence[Trainable],
    key_values: Sequence[KeyValues],
) -> RowLosses:
    """One pass over rows of several trainables; `member_B`: which of the `members` each row belongs to."""
    prefixes = None
    if key_values[0]:
        placements, positions = [each.placement for each in members], [each.positions for each in members]
        prefixes = PrefixBatch.from_tensors(key_values, member_B, placements, positions)
    return objective.losses(base, rows, prefixes)


def _backward(
    base: BaseModel,
    trainers: Sequence[Trainer],
    objective: Objective,
    part: Part,
    leaves: Sequence[KeyValues],
    divisors: Sequence[int],
) -> dict[int, Evaluation]:
    """Gradients of one pass, added to the leaves; returns each trainer's sums of loss terms and measures."""
    members = list(dict.fromkeys(index for index, _ in part))
    number = {index: place for place, index in enumerate(members)}
    member_B = [number[index] for index, _ in part]
    row_losses = _losses(
        base,
        objective,
        [row for _, row in part],
        member_B,
        [trainers[index].trained for index in members],
        [leaves[index] for index in members],
    )
    losses_M = row_losses.losses_M
    member_M = torch.tensor(member_B, device=losses_M.device)[row_losses.row_M]
    sums = torch.zeros(len(members), device=losses_M.device).index_add(0, member_M, losses_M)
    weights = torch.tensor([1 / divisors[index] for index in members], device=sums.device)
    (sums * weights).sum().backward()
    measured = {
        name: torch.zeros_like(sums).index_add(0, member_M, value_M).tolist()
        for name, value_M in row_losses.measures.items()
    }
    return {
        index: Evaluation(loss, {name: values[place] for name, values in measured.items()})
        for place, (index, loss) in enumerate(zip(members, sums.tolist(), strict=True))
    }


def _detached(key_values: KeyValues, device: torch.device) -> KeyValues:
    # Cut from the parameters' graph, which is then run backwards once a step, not once a pass.
    return {
        stream: (
            key.detach().to(device).clone().requires_grad_(),
            value.detach().to(device).clone().requires_grad_(),
        )
        for stream, (key, value) in key_values.items()
    }


def _gradients(key_values: KeyValues, leaves: KeyValues) -> KeyValues:
    def gradient(leaf: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(like) if leaf.grad is None else leaf.grad.to(like.device)

    return {
        stream: (gradient(leaves[stream][0], key), gradient(leaves[stream][1], value))
        for stream, (key, value) in key_values.items()
    }


def _parts(
    trainers: Sequence[Trainer],
    rows: Sequence[Sequence[EncodedExample]],
    max_batch_tokens: int | None,
    isolated: bool,
) -> list[Part]:
    """Divide the rows of a step into passes.

    First by each trainer's gradient accumulation; parts of the same number share a pass, unless isolated.
    Then what has too many tokens.
    """
    by_trainer: list[list[Part]] = []
    for index, (trainer, own) in enumerate(zip(trainers, rows, strict=True)):
        size = math.ceil(len(own) / trainer.settings.gradient_accumulation)
        by_trainer.append(
            [[(index, row) for row in own[start : start + size]] for start in range(0, len(own), size)]
        )
    if isolated:
        parts = list(itertools.chain(*by_trainer))
    else:
        together = itertools.zip_longest(*by_trainer, fillvalue=[])
        parts = [list(itertools.chain(*of_all)) for of_all in together]
    if max_batch_tokens is None:
        return parts
    return [smaller for part in parts for smaller in _split(part, max_batch_tokens)]


def _split(part: Part, max_batch_tokens: int) -> Iterator[Part]:
    """Parts of at most so many tokens, or of one row."""
    smaller: Part = []
    filled = 0
    for index, row in part:
        if smaller and filled + _new_tokens(index, row, smaller) > max_batch_tokens:
            yield smaller
            smaller, filled = [], 0
        filled += _new_tokens(index, row, smaller)
        smaller.append((index, row))
    yield smaller


def _new_tokens(index: int, row: EncodedExample, part: Part) -> int:
    """Tokens that a row adds to a pass: its source is there already if the row before has the same."""
    shares = bool(part) and part[-1][0] == index and part[-1][1].source_ids == row.source_ids
    return row.tokens - len(row.source_ids) * shares
