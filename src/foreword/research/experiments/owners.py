"""Owners: whose examples an experiment trains on and measures, and what of the data is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foreword.base.base_model import BaseModel
from foreword.encoding import encode_example
from foreword.errors import BadExamples, UsageError
from foreword.examples import Example

ByOwner = dict[str, list[Example]]


@dataclass(frozen=True)
class OwnersData:
    """Owners in alphabetical order, each with examples of both kinds.

    Attributes:
        train, dev: by owner.
        tokens: mean tokens of an example, by owner: of `train`, of `dev`.
        too_long: examples left out for their length: of `train`, of `dev`.
        unmeasured: owners left out because they have no dev examples.
    """

    train: ByOwner
    dev: ByOwner
    tokens: dict[str, tuple[float, float]]
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
        train={name: [example for example, _ in kept] for name, kept in kept_train.items()},
        dev={name: [example for example, _ in kept[:dev_rows]] for name, kept in kept_dev.items()},
        tokens={name: (_mean(kept_train[name]), _mean(kept_dev[name][:dev_rows])) for name in names},
        too_long=(
            sum(len(all_train[name]) - len(kept_train[name]) for name in names),
            sum(len(all_dev[name]) - len(kept_dev[name]) for name in names),
        ),
        unmeasured=tuple(sorted(set(all_train) - set(all_dev))),
    )


def _by_owner(examples: Sequence[Example], what: str) -> ByOwner:
    found: ByOwner = {}
    for number, example in enumerate(examples):
        if example.owner is None:
            raise BadExamples(
                f"{what} example {number} has no owner; expected one in every example. Name the field that "
                "holds it with --owner-field"
            )
        found.setdefault(example.owner, []).append(example)
    return found


def _short(
    base: BaseModel, examples: Sequence[Example], max_length: int, what: str
) -> list[tuple[Example, int]]:
    """Those of at most `max_length` tokens, with their number of tokens."""
    counted = [
        (example, encode_example(example, base.tokenizer, base.template)[0].tokens) for example in examples
    ]
    kept = [(example, tokens) for example, tokens in counted if tokens <= max_length]
    if not kept:
        raise BadExamples(
            f"no {what} has at most {max_length} tokens; the shortest has "
            f"{min(tokens for _, tokens in counted)}. Take a larger --max-length, or leave that owner out"
        )
    return kept


def _mean(counted: Sequence[tuple[Example, int]]) -> float:
    return sum(tokens for _, tokens in counted) / len(counted)
