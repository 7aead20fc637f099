"""Personalization: does an owner's own prefix do better on their examples than the alternatives?

Compared on every owner's dev examples: no prefix, one prefix trained on the pooled examples of all owners,
the owner's own, and each other owner's.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from foreword.base.base_model import BaseModel
from foreword.encoding import encode_example
from foreword.errors import BadExamples, DamagedCheckpoint, ForewordError, UsageError
from foreword.examples import Example, digest
from foreword.prefix import Prefix
from foreword.research.experiments.plan import OnProgress, seconds_since
from foreword.research.experiments.results import Results
from foreword.research.experiments.statistics import Column
from foreword.training import Progress, train, train_many
from foreword.training.settings import TrainingSettings
from foreword.validation import setting

EXPERIMENT = "personalization"
SHARED = "shared prefix"

ByOwner = dict[str, list[Example]]


@dataclass(frozen=True)
class OwnersData:
    """Owners in alphabetical order, each with examples of both kinds.

    Attributes:
        too_long: examples left out for their length: of `train`, of `dev`.
        unmeasured: owners left out because they have no dev examples.
    """

    train: ByOwner
    dev: ByOwner
    too_long: tuple[int, int]
    unmeasured: tuple[str, ...]

    @property
    def owners(self) -> list[str]:
        """Their names, in order."""
        return list(self.train)


def choose_owners(
    base: BaseModel,
    train: Sequence[Example],
    dev: Sequence[Example],
    *,
    owners: int | None,
    dev_rows: int | None,
    max_length: int,
) -> OwnersData:
    """The first owners by name, with their examples of at most `max_length` tokens.

    Nothing is cut: the same whole texts are trained on and measured, with and without a prefix.

    Args:
        owners: how many; None: all.
        dev_rows: the first so many dev examples of each; None: all.
        max_length: tokens of an example, as `base` reads it.

    Raises:
        UsageError: fewer than two owners asked for, more than there are, no dev rows.
        BadExamples: examples without an owner; owners in dev that are not in train; fewer than two
            owners; an owner of whom no example is short enough.
    """
    if owners is not None and owners < 2:
        raise UsageError(f"owners is {owners}; expected at least 2, there is nothing to compare with one")
    if dev_rows is not None and dev_rows < 1:
        raise UsageError(f"dev_rows is {dev_rows}; expected at least 1")
    all_train, all_dev = _by_owner(train, "training"), _by_owner(dev, "dev")
    if unknown := sorted(set(all_dev) - set(all_train)):
        raise BadExamples(
            f"{len(unknown)} owners have dev examples but no training examples, {unknown[0]!r} among them; "
            "no prefix can be trained for them. Add their training examples, or remove the dev examples"
        )
    names = sorted(all_dev)
    if len(names) < 2:
        raise BadExamples(
            f"only {names[0]!r} has dev examples; expected at least 2 owners with training and dev examples"
        )
    if owners is not None and owners > len(names):
        raise UsageError(f"owners is {owners}, but {len(names)} have training and dev examples")
    names = names[:owners]
    kept_train = {
        name: _short(base, all_train[name], max_length, f"training example of {name!r}") for name in names
    }
    kept_dev = {name: _short(base, all_dev[name], max_length, f"dev example of {name!r}") for name in names}
    return OwnersData(
        train=kept_train,
        dev={name: kept[:dev_rows] for name, kept in kept_dev.items()},
        too_long=(
            sum(len(all_train[name]) - len(kept_train[name]) for name in names),
            sum(len(all_dev[name]) - len(kept_dev[name]) for name in names),
        ),
        unmeasured=tuple(sorted(set(all_train) - set(all_dev))),
    )


def _by_owner(examples: Sequence[Example], what: str) -> ByOwner:
    by_owner: ByOwner = {}
    for number, example in enumerate(examples):
        if example.owner is None:
            raise BadExamples(
                f"{what} example {number} has no owner; expected one in every example. Name the field that "
                "holds it with --owner-field"
            )
        by_owner.setdefault(example.owner, []).append(example)
    return by_owner


def _short(base: BaseModel, examples: Sequence[Example], max_length: int, what: str) -> list[Example]:
    """Those of at most `max_length` tokens."""
    counts = [encode_example(example, base.tokenizer, base.template)[0].tokens for example in examples]
    kept = [example for example, tokens in zip(examples, counts, strict=True) if tokens <= max_length]
    if not kept:
        raise BadExamples(
            f"no {what} has at most {max_length} tokens; the shortest has {min(counts)}. Take a larger "
            "--max-length, or leave that owner out"
        )
    return kept


@dataclass(frozen=True)
class Recipe(TrainingSettings):
    """How every prefix of the experiment is trained."""

    shared_steps: int | None = setting(None, ge=1, help="Optimiser steps of the shared prefix")

    @property
    def options(self) -> dict[str, Any]:
        """As keywords of `train` and `train_many`."""
        return {name: value for name, value in self.keywords().items() if name != "shared_steps"}

    def steps_of(self, data: OwnersData) -> dict[str, int]:
        """Optimiser steps of each owner."""
        return {owner: self.steps_for(len(examples)) for owner, examples in data.train.items()}

    def steps_of_shared(self, data: OwnersData) -> int:
        """Optimiser steps of the shared prefix; as many as all owners' together where nothing else is set."""
        return self.shared_steps or sum(self.steps_of(data).values())


def settings_of(base: BaseModel, data: OwnersData, recipe: Recipe, max_length: int) -> dict[str, Any]:
    """What makes a run this run and no other, as its results keep it."""
    return {
        "owners": len(data.owners),
        "train examples": sum(map(len, data.train.values())),
        "dev examples": sum(map(len, data.dev.values())),
        "train digest": digest(example for examples in data.train.values() for example in examples),
        "dev digest": digest(example for examples in data.dev.values() for example in examples),
        "base fingerprint": base.fingerprint,
        "dtype": str(base.dtype).removeprefix("torch."),
        **({} if base.quantization is None else {"quantization": base.quantization}),
        "max_length": max_length,
        "length": recipe.length,
        "steps": recipe.steps,
        "shared_steps": recipe.steps_of_shared(data),
        "batch_size": recipe.batch_size,
        "learning_rate": recipe.learning_rate,
        "parameterization": str(recipe.parameterization),
        "init": str(recipe.init),
        "seed": recipe.seed,
    }


def left(data: OwnersData, results: Results) -> tuple[int, int]:
    """How many prefixes are to be trained, the shared one among them, and how many owners to be scored."""
    prefixes = [SHARED, *map(_prefix_key, data.owners)]
    return (
        sum(name not in results.records for name in prefixes),
        sum(_column_key(owner) not in results.records for owner in data.owners),
    )


def run(
    base: BaseModel, data: OwnersData, recipe: Recipe, folder: Path, results: Results, on_progress: OnProgress
) -> list[Column]:
    """Make what the results do not have, and return a column for every owner.

    Prefixes go to `folder`/prefixes, checkpoints of training to `folder`/training. Training sees no dev
    example: the prefix of the last step is kept, not of the best.

    Args:
        on_progress: called with what is being done, how much of it is, and how much there is.

    Raises:
        OwnersFailed, TrainingDiverged: a learning rate that is too high.
        TrainingStopped: Ctrl-C; run again to go on.
        DamagedCheckpoint: a prefix file that is not the one the results names.
        CannotWrite: no right or no space.
    """
    (folder / "prefixes").mkdir(exist_ok=True)
    experiment = _Experiment(base, data, recipe, folder, results, on_progress)
    shared, own = experiment.shared_prefix(), experiment.own_prefixes()
    for number, owner in enumerate(data.owners):
        on_progress("owners scored", number, len(data.owners))
        if _column_key(owner) not in results.records:
            start_time = time.perf_counter()
            column = score_column(base, owner, data.dev[owner], shared, own)
            figures = {name: value for name, value in dataclasses.asdict(column).items() if name != "owner"}
            results.add(_column_key(owner), seconds=seconds_since(start_time), **figures)
    on_progress("owners scored", len(data.owners), len(data.owners))
    columns = []
    for owner in data.owners:
        figures = {**results.records[_column_key(owner)]}
        del figures["seconds"]
        columns.append(Column(owner, **figures))
    return columns


def score_column(
    base: BaseModel, owner: str, dev: Sequence[Example], shared: Prefix, own: Mapping[str, Prefix]
) -> Column:
    """One owner's dev examples without a prefix, under the shared one, and under every owner's.

    Rows of all prefixes share the passes of the base model.

    Raises:
        ForewordError: a loss that is not finite.
    """
    conditions: list[Prefix | None] = [None, shared, *own.values()]
    losses = base.token_losses(
        list(dev) * len(conditions), [prefix for prefix in conditions for _ in range(len(dev))]
    )
    means = []
    for place in range(len(conditions)):
        rows = losses[place * len(dev) : (place + 1) * len(dev)]
        tokens = sum(row.numel() for row in rows)
        means.append(sum(float(row.double().sum()) for row in rows) / tokens)
    if not all(map(math.isfinite, means)):
        raise ForewordError(f"a loss on the dev examples of {owner!r} is not finite; take --dtype float32")
    return Column(owner, len(dev), tokens, means[0], means[1], dict(zip(own, means[2:], strict=True)))


@dataclass(frozen=True)
class _Experiment:
    """What the trainings of a run have in common: prefixes go to `folder`/prefixes, checkpoints to
    `folder`/training."""

    base: BaseModel
    data: OwnersData
    recipe: Recipe
    folder: Path
    results: Results
    on_progress: OnProgress

    def shared_prefix(self) -> Prefix:
        """The prefix of all owners' examples together: loaded if it is among the results, else trained."""
        path, steps = self.folder / "prefixes" / "shared.prefix", self.recipe.steps_of_shared(self.data)
        if SHARED in self.results.records:
            return _load(path, self.results.records[SHARED]["digest"])
        start_time = time.perf_counter()
        prefix = train(
            self.base,
            [example for examples in self.data.train.values() for example in examples],
            template=self.base.template,
            checkpoint_dir=self.folder / "training" / "shared",
            on_progress=lambda p: self.on_progress("steps of the shared prefix", p.step, p.steps),
            **{**self.recipe.options, "steps": steps},
        )
        prefix.save(path, overwrite=True)
        self.results.add(SHARED, seconds=seconds_since(start_time), digest=prefix.digest, steps=steps)
        return prefix

    def own_prefixes(self) -> dict[str, Prefix]:
        """Every owner's prefix; those that are not among the results are trained in one run."""
        records, owners = self.results.records, self.data.owners
        # Quoted, so that no name can point elsewhere; the sign in front keeps it apart from the shared one.
        paths = {owner: self.folder / "prefixes" / f"@{quote(owner, safe='')}.prefix" for owner in owners}
        steps, start_time = self.recipe.steps_of(self.data), time.perf_counter()
        left = [owner for owner in owners if _prefix_key(owner) not in records]
        done = dict.fromkeys(left, 0)

        def keep(owner: str, prefix: Prefix) -> None:
            prefix.save(paths[owner], overwrite=True)
            seconds = seconds_since(start_time)
            self.results.add(_prefix_key(owner), seconds=seconds, digest=prefix.digest, steps=steps[owner])

        def report(progress: Progress) -> None:
            done[progress.owner or ""] = progress.step
            total = sum(steps[owner] for owner in left)
            self.on_progress("steps of owners' prefixes", sum(done.values()), total)

        if left:
            train_many(
                self.base,
                {owner: self.data.train[owner] for owner in left},
                template=self.base.template,
                checkpoint_dir=self.folder / "training" / "owners",
                into=keep,
                on_progress=report,
                **self.recipe.options,
            )
        return {owner: _load(paths[owner], records[_prefix_key(owner)]["digest"]) for owner in owners}


def _load(path: Path, expected: str) -> Prefix:
    prefix = Prefix.load(path)
    if prefix.digest != expected:
        raise DamagedCheckpoint(
            f"{path} has the digest {prefix.digest[:12]}, but the run's results name {expected[:12]}; the "
            "file was replaced. Bring the old one back, or begin anew in another folder"
        )
    return prefix


def _prefix_key(owner: str) -> str:
    return f"prefix of {owner}"


def _column_key(owner: str) -> str:
    return f"losses on {owner}"
