"""Choosing: the learning rate (or prompt) of a method, on dev examples, each point a piece of the ledger.

Attempt: one training of a method with one choice on some examples, for a grid or for a trial.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from foreword.base.base_model import BaseModel
from foreword.encoding import encode
from foreword.errors import TrainingDiverged
from foreword.examples import Example
from foreword.research.baselines.fit import Fit, fit
from foreword.research.baselines.protocol import AdapterInputs, Trainee
from foreword.research.baselines.registry import RATE, Choice, Method
from foreword.research.experiments.checks import choices
from foreword.research.experiments.plan import TUNING, OnProgress, Plan
from foreword.research.experiments.results import Results, choice_piece, chosen_before, chosen_piece
from foreword.research.experiments.splits import DataSplits


def attempt(
    base: BaseModel,
    method: Method,
    choice: Choice,
    examples: Sequence[Example],
    dev: Sequence[Example],
    plan: Plan,
    seed: int,
    what: str,
    on_progress: OnProgress,
) -> tuple[Trainee, Fit | None]:
    """The trainee at its best step; None instead of how it went if it diverged."""
    apart, limit = base.is_encoder_decoder, plan.max_length
    rows, _ = encode(examples, base.tokenizer, base.template, limit, apart=apart)
    setting = AdapterInputs(base, examples, rows, plan.length, seed, choice, plan.instruction)
    trainee = method.begin(setting)
    dev_rows, _ = encode(dev, base.tokenizer, trainee.template, limit, apart=apart)
    settings = plan.training(choice, seed)
    try:
        return trainee, fit(
            base, trainee, rows, dev_rows, settings, lambda done, steps: on_progress(what, done, steps)
        )
    except TrainingDiverged:
        return trainee, None


# -- Choosing: the learning rate (or prompt) of a method, on dev examples, each point a piece of the ledger


def choose(
    base: BaseModel,
    method: Method,
    material: DataSplits,
    plan: Plan,
    ledger: Results,
    on_progress: OnProgress,
) -> Choice | None:
    """The point of the method's grid with the lowest dev loss; None if training diverged at all of them.

    A rate at the edge has the grid extended. A prompt, once chosen, is kept as a piece of the ledger.
    """
    if not plan.tuned:
        return method.usual
    if (before := chosen_before(method, ledger)) is not None:
        return before
    found = _best(base, method, material, plan, ledger, on_progress)
    if found and RATE not in found:
        ledger.add(chosen_piece(method), choice=found)
    return found


def _best(
    base: BaseModel,
    method: Method,
    material: DataSplits,
    plan: Plan,
    ledger: Results,
    on_progress: OnProgress,
) -> Choice | None:
    waiting = choices(base, method, material, plan)
    if len(waiting) == 1:
        return waiting[0]
    tried: list[tuple[float, Choice]] = []
    while waiting:
        choice = waiting.pop(0)
        piece = choice_piece(method, choice)
        if piece not in ledger.pieces:
            begun = time.perf_counter()
            examples = material.subset(plan.tuning_size, plan.seed, TUNING)
            _, found = attempt(
                base, method, choice, examples, material.dev, plan, plan.seed, piece, on_progress
            )
            ledger.add(
                piece,
                choice=choice,
                dev_loss=None if found is None else found.dev_loss,
                step=None if found is None else found.step,
                curve=None if found is None else found.curve,
                seconds=round(time.perf_counter() - begun, 1),
            )
        loss = ledger.pieces[piece]["dev_loss"]
        tried.append((math.inf if loss is None else loss, choice))
        if not waiting and RATE in choice and (further := method.wider({c[RATE]: x for x, c in tried})):
            waiting.append(further)
    loss, best = min(tried, key=lambda pair: pair[0])
    return None if math.isinf(loss) else best
