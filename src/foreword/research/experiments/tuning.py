"""Choosing: the learning rate (or prompt) of a method, on dev examples, each point a piece of the ledger."""

from __future__ import annotations

import math
import time

from foreword.base.base_model import BaseModel
from foreword.research.baselines.registry import RATE, Choice, Method, shown
from foreword.research.experiments.attempt import attempt
from foreword.research.experiments.checks import choices
from foreword.research.experiments.plan import TUNING, OnProgress, Plan
from foreword.research.experiments.results import Ledger
from foreword.research.experiments.splits import Material


def choice_piece(method: Method, choice: Choice) -> str:
    """Name in the ledger of a point of a grid."""
    return f"grid of {method.name}: {shown(choice)}"


def chosen_piece(method: Method) -> str:
    """Name in the ledger of the prompt that was chosen for a method."""
    return f"choice of {method.name}"


def chosen_before(method: Method, ledger: Ledger) -> Choice | None:
    """The prompt that earlier trials of the run have. Which prompts fit depends on the subsets, and these may
    grow; trials of one method must not have several. Of rates, the grid gives the same one again."""
    piece = ledger.pieces.get(chosen_piece(method))
    return None if piece is None else dict(piece["choice"])


def choose(
    base: BaseModel, method: Method, material: Material, plan: Plan, ledger: Ledger, on_progress: OnProgress
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
    base: BaseModel, method: Method, material: Material, plan: Plan, ledger: Ledger, on_progress: OnProgress
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
