"""Preconditions: what can't be tried with this base and this data is said before the first training."""

from __future__ import annotations

from collections.abc import Sequence

from foreword.base.base_model import BaseModel
from foreword.encoding import encode
from foreword.errors import ForewordError, UnsupportedArchitecture, UsageError, WindowExceeded
from foreword.research.baselines.protocol import Setting
from foreword.research.baselines.registry import RATE, Method, shown
from foreword.research.experiments.checks import choices, misfit
from foreword.research.experiments.plan import Plan
from foreword.research.experiments.results import Ledger
from foreword.research.experiments.splits import Material
from foreword.research.experiments.tuning import chosen_before

LOOKED_AT = 100
"""Training examples among which a short one is looked for."""


def without_unsupported(
    base: BaseModel, methods: Sequence[Method], material: Material, plan: Plan
) -> tuple[list[Method], dict[str, str]]:
    """Those of `methods` that the base can have, and why it can't have the others, by name."""
    kept, refused = [], {}
    for method in methods:
        try:
            _begin(base, method, material, plan)
        except (UsageError, UnsupportedArchitecture) as error:
            refused[method.name] = str(error)
        else:
            kept.append(method)
    return kept, refused


def check_chosen(base: BaseModel, material: Material, plan: Plan, ledger: Ledger) -> None:
    """Refuse subsets into which a prompt does not fit that was chosen when the run had fewer of them.

    Raises:
        WindowExceeded: names the prompt and the text.
    """
    for method in (*plan.methods, *plan.others):
        choice = chosen_before(method, ledger)
        if choice is not None and (found := misfit(base, method, choice, material, plan)):
            raise WindowExceeded(
                f"{method.name}: all trials of this run have to have the prompt that it has chosen, "
                f"{shown(choice)}. {found}. Or leave the method out, or take another folder"
            )


def check(base: BaseModel, material: Material, plan: Plan) -> None:
    """Refuse what would end in an error later.

    Raises:
        UsageError: several subsets where each is all of the examples; a method that the base can't have.
        UnsupportedArchitecture: the same, because of how it is built.
        WindowExceeded: a text that does not fit behind what a method puts in front of it.
    """
    everything = len(material.train)
    if plan.subsets > 1 and everything in {trial.size for trial in plan.trials()}:
        raise UsageError(
            f"{plan.subsets} subsets of {everything} training examples are asked for, and there are no more: "
            "all would be the same. Take one subset, with several seeds, or fewer examples"
        )
    for method in (*plan.methods, *plan.others):
        _begin(base, method, material, plan)
        if plan.tuned and RATE not in method.usual and choices(base, method, material, plan):
            continue
        smallest = method.choices(base)[0] if plan.tuned else method.usual
        if found := misfit(base, method, smallest, material, plan):
            raise WindowExceeded(f"{method.name}: {found}")


def _begin(base: BaseModel, method: Method, material: Material, plan: Plan) -> None:
    """Begin it once, on one short example: what the base is not built for shows."""
    looked_at = material.train[:LOOKED_AT]
    short = min(looked_at, key=lambda example: len(str(example.source)) + len(example.target))
    rows, _ = encode([short], base.tokenizer, base.template, plan.max_length, apart=base.is_encoder_decoder)
    try:
        method.begin(Setting(base, [short], rows, plan.length, plan.seed, method.usual, plan.instruction))
    except WindowExceeded:
        pass  # of one example; what follows says it of all
    except ForewordError as error:
        raise type(error)(f"{method.name}: {error}") from error
