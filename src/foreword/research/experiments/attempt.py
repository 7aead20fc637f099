"""Attempt: one training of a method with one choice on some examples, for a grid or for a trial."""

from __future__ import annotations

from collections.abc import Sequence

from foreword.base.base_model import BaseModel
from foreword.encoding import encode
from foreword.errors import TrainingDiverged
from foreword.examples import Example
from foreword.research.baselines.fit import Fit, fit
from foreword.research.baselines.protocol import Setting, Trainee
from foreword.research.baselines.registry import Choice, Method
from foreword.research.experiments.plan import OnProgress, Plan


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
    setting = Setting(base, examples, rows, plan.length, seed, choice, plan.instruction)
    trainee = method.begin(setting)
    dev_rows, _ = encode(dev, base.tokenizer, trainee.template, limit, apart=apart)
    settings = plan.training(choice, seed)
    try:
        return trainee, fit(
            base, trainee, rows, dev_rows, settings, lambda done, steps: on_progress(what, done, steps)
        )
    except TrainingDiverged:
        return trainee, None
