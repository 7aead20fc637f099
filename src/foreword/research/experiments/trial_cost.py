"""Cost of trials: how long those that are left will take, told from a few steps of each kind of work."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from foreword.base.base_model import BaseModel
from foreword.encoding import EncodedExample, encode
from foreword.generation import generate
from foreword.research.baselines.protocol import AdapterInputs, Trainee
from foreword.research.baselines.registry import METHODS, Method
from foreword.research.experiments.checks import choices
from foreword.research.experiments.measure import LOSS_TARGETS
from foreword.research.experiments.plan import Plan
from foreword.research.experiments.results import Results, choice_piece, chosen_before
from foreword.research.experiments.splits import DataSplits, distinct_sources, few_targets
from foreword.template import Source

EVALUATIONS = 11
"""Dev evaluations of a training: before it, and after each tenth."""

SEEN = 256
"""Training examples that tell how long all are."""

WRITTEN_ROWS, WRITTEN_TOKENS = 8, 12


@dataclass(frozen=True)
class Left:
    """What is left to do.

    Attributes:
        trainings: how many, grids included.
        measured: trials.
        seconds: about so many.
    """

    trainings: int
    measured: int
    seconds: float


def left(base: BaseModel, material: DataSplits, plan: Plan, ledger: Results) -> Left:
    """What the ledger does not have; not foreseen: grids that are made wider, patience that ends."""
    tuned: dict[str, tuple[Method, int]] = {}
    trials = [trial for trial in plan.trials() if trial.piece not in ledger.pieces]
    for trial in trials:
        if not plan.tuned or trial.method.name in tuned or chosen_before(trial.method, ledger) is not None:
            continue
        if len(possible := choices(base, trial.method, material, plan)) > 1:
            missing = [c for c in possible if choice_piece(trial.method, c) not in ledger.pieces]
            tuned[trial.method.name] = (trial.method, len(missing))
    if not trials:
        return Left(0, 0, 0.0)
    speed = _speed(base, material, plan, [trial.method for trial in trials])
    seconds = 0.0
    for method, count in tuned.values():
        seconds += count * speed.training(method, plan.training({}, 0).steps_for(plan.tuning_size))
    for trial in trials:
        steps = plan.training({}, 0).steps_for(trial.size)
        seconds += speed.training(trial.method, steps) + speed.measuring
    return Left(sum(count for _, count in tuned.values()) + len(trials), len(trials), seconds)


@dataclass(frozen=True)
class _Speed:
    step: dict[str, float]
    evaluation: float
    measuring: float

    def training(self, method: Method, steps: int) -> float:
        evaluations = 1 if method.work == "none" else EVALUATIONS
        return steps * self.step[method.work] + evaluations * self.evaluation


def _speed(base: BaseModel, material: DataSplits, plan: Plan, methods: list[Method]) -> _Speed:
    """Seconds of a step of each kind of work, of a dev evaluation, and of measuring one subject."""
    apart = base.is_encoder_decoder
    rows, _ = encode(material.train[:SEEN], base.tokenizer, base.template, plan.max_length, apart=apart)
    batch = _of_all_lengths(rows, plan.batch_size)
    step, score = {"none": 0.0}, 0.0
    for work, method in (("frozen", METHODS["prefix"]), ("weights", METHODS["fine-tuning"])):
        if work == "frozen" or any(method.work == work for method in methods):
            setting = AdapterInputs(base, material.train, rows, plan.length, plan.seed, method.usual, "")
            trainee = method.begin(setting)
            step[work] = _seconds_of_a_step(trainee, batch)
            score = score or _seconds_of_scoring(trainee, batch) / len(batch)
    measured = [entry for group in material.measured.values() for entry in group]
    sources = distinct_sources(measured)
    scored = len(few_targets(measured, LOSS_TARGETS)) * score
    target_tokens = sum(len(row.target_ids) for row in rows) / len(rows)
    written = _seconds_per_written_token(base, sources, plan) * target_tokens * len(sources)
    return _Speed(step, len(material.dev) * score, scored + written)


def _of_all_lengths(rows: list[EncodedExample], count: int) -> list[EncodedExample]:
    """At most `count` rows, from short to long as they come."""
    ordered = sorted(rows, key=lambda row: row.tokens)
    count = min(count, len(ordered))
    return [ordered[(2 * place + 1) * len(ordered) // (2 * count)] for place in range(count)]


def _seconds_of_a_step(trainee: Trainee, batch: list[EncodedExample]) -> float:
    optimizer = torch.optim.AdamW(trainee.parameters, lr=1e-6, fused=True)
    begun = 0.0
    for turn in range(2):  # the first one allocates
        begun = time.perf_counter() if turn else 0.0
        trainee.losses(batch).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return time.perf_counter() - begun


def _seconds_of_scoring(trainee: Trainee, batch: list[EncodedExample]) -> float:
    begun = time.perf_counter()
    with torch.no_grad():
        trainee.losses(batch)
    return time.perf_counter() - begun


def _seconds_per_written_token(base: BaseModel, sources: list[Source], plan: Plan) -> float:
    prompts = sources[:WRITTEN_ROWS]

    def write(prompts: list[Source], tokens: int) -> None:
        generate(base, prompts, **{**plan.decoding, "max_new_tokens": tokens, "min_new_tokens": tokens})

    write(prompts[:1], 1)  # lays out weights
    begun = time.perf_counter()
    write(prompts, WRITTEN_TOKENS)
    return (time.perf_counter() - begun) / (len(prompts) * WRITTEN_TOKENS)
