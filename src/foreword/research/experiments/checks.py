"""Checks before the first training: what can't be tried with this base and this data is said at once.

Virtual tokens and demonstrations take part of the base's positions (`Method.front`). What is left has to do
for every text that is trained on, chooses or is measured: said now, not after hours of training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from foreword.base.base_model import BaseModel
from foreword.encoding import EncodedExample, encode
from foreword.errors import ForewordError, UnsupportedArchitecture, UsageError, WindowExceeded
from foreword.examples import Example
from foreword.research.baselines.protocol import AdapterInputs, ContextCost
from foreword.research.baselines.registry import RATE, Choice, Method, shown
from foreword.research.experiments.measure import LOSS_TARGETS
from foreword.research.experiments.plan import TUNING, Plan
from foreword.research.experiments.results import Results, chosen_before
from foreword.research.experiments.splits import DataSplits, few_targets
from foreword.template import Template

LOOKED_AT = 100
"""Training examples among which a short one is looked for."""


def choices(base: BaseModel, method: Method, splits: DataSplits, plan: Plan) -> list[Choice]:
    """What may be tried: the method's grid, without prompts that do not fit (all rates fit alike)."""
    possible = method.choices(base)
    if any(RATE in choice for choice in possible):
        return possible
    return [choice for choice in possible if misfit(base, method, choice, splits, plan) is None]


def misfit(base: BaseModel, method: Method, choice: Choice, splits: DataSplits, plan: Plan) -> str | None:
    """The first text that does not fit behind this choice, and what to do, in words; None if all do."""
    if base.max_positions is None:
        return None
    fronts = {front(base, method, choice, examples, plan) for examples in _subsets(splits, plan, method)}
    largest = max(each.tokens for each in fronts)
    (template,) = {each.template for each in fronts}
    try:
        limit = base.max_text_tokens(largest)
    except WindowExceeded as error:
        return str(error)
    assert limit is not None
    for what, tokens, remedy in _texts(base, method, splits, plan, template, limit):
        if tokens > limit:
            return (
                f"{what} has {tokens} tokens; {limit} fit behind the {largest} that stand in front of it in "
                f"the {base.max_positions} positions of {base.name}. {remedy}"
            )
    return None


def front(
    base: BaseModel, method: Method, choice: Choice, examples: Sequence[Example], plan: Plan
) -> ContextCost:
    """What the method puts in front of every text, trained on `examples`."""
    shown = examples[: choice.get("shots", 0)]
    rows = _encoded(base, shown, base.template, plan)
    return method.front(AdapterInputs(base, shown, rows, plan.length, plan.seed, choice, plan.instruction))


def _subsets(splits: DataSplits, plan: Plan, method: Method) -> list[list[Example]]:
    """What the method is trained on, or has demonstrations from."""
    trials = {(trial.size, trial.subset) for trial in plan.trials() if trial.method == method}
    drawn = [splits.subset(size, plan.seed, str(subset)) for size, subset in sorted(trials)]
    return [*drawn, splits.subset(plan.tuning_size, plan.seed, TUNING)] if plan.tuned else drawn


def _texts(
    base: BaseModel, method: Method, splits: DataSplits, plan: Plan, template: Template, limit: int
) -> Iterator[tuple[str, int, str]]:
    """What is read: its name, how many tokens of the window it takes, and what helps if they are too many."""
    for name, entries in splits.measured.items():
        examples = few_targets(entries, LOSS_TARGETS)
        rows, _ = encode(examples, base.tokenizer, template)
        for number, (row, example) in enumerate(zip(rows, examples, strict=True)):
            what = f"example {number} of those measured ({name}), {str(example.source)[:40]!r},"
            # One more than the source: a token is written.
            written = 0 if base.is_encoder_decoder else len(row.source_ids) + 1
            yield what, max(_tokens(base, row), written), "Shorten it, or leave it out"
    if plan.max_length <= limit:
        return  # what is longer is cut
    rows = _encoded(base, splits.dev, template, plan)
    if method.trains:
        rows += [
            row for each in _subsets(splits, plan, method) for row in _encoded(base, each, template, plan)
        ]
    for row in rows:
        yield "a training or dev example", _tokens(base, row), f"Cut them with --max-length {limit}"


def _tokens(base: BaseModel, row: EncodedExample) -> int:
    return max(len(row.source_ids), len(row.target_ids)) if base.is_encoder_decoder else row.tokens


def _encoded(
    base: BaseModel, examples: Sequence[Example], template: Template, plan: Plan
) -> list[EncodedExample]:
    return encode(examples, base.tokenizer, template, plan.max_length, apart=base.is_encoder_decoder)[0]


def without_unsupported(
    base: BaseModel, methods: Sequence[Method], splits: DataSplits, plan: Plan
) -> tuple[list[Method], dict[str, str]]:
    """Those of `methods` that the base can have, and why it can't have the others, by name."""
    kept, refused = [], {}
    for method in methods:
        try:
            _begin(base, method, splits, plan)
        except (UsageError, UnsupportedArchitecture) as error:
            refused[method.name] = str(error)
        else:
            kept.append(method)
    return kept, refused


def check_chosen(base: BaseModel, splits: DataSplits, plan: Plan, results: Results) -> None:
    """Refuse subsets into which a prompt does not fit that was chosen when the run had fewer of them.

    Raises:
        WindowExceeded: names the prompt and the text.
    """
    for method in (*plan.methods, *plan.others):
        choice = chosen_before(method, results)
        if choice is not None and (reason := misfit(base, method, choice, splits, plan)):
            raise WindowExceeded(
                f"{method.name}: all trials of this run have to have the prompt that it has chosen, "
                f"{shown(choice)}. {reason}. Or leave the method out, or take another folder"
            )


def check(base: BaseModel, splits: DataSplits, plan: Plan) -> None:
    """Refuse what would end in an error later.

    Raises:
        UsageError: several subsets where each is all of the examples; a method that the base can't have.
        UnsupportedArchitecture: the same, because of how it is built.
        WindowExceeded: a text that does not fit behind what a method puts in front of it.
    """
    everything = len(splits.train)
    if plan.subsets > 1 and everything in {trial.size for trial in plan.trials()}:
        raise UsageError(
            f"{plan.subsets} subsets of {everything} training examples are asked for, and there are no more: "
            "all would be the same. Take one subset, with several seeds, or fewer examples"
        )
    for method in (*plan.methods, *plan.others):
        _begin(base, method, splits, plan)
        if plan.tuned and RATE not in method.default and choices(base, method, splits, plan):
            continue
        smallest = method.choices(base)[0] if plan.tuned else method.default
        if reason := misfit(base, method, smallest, splits, plan):
            raise WindowExceeded(f"{method.name}: {reason}")


def _begin(base: BaseModel, method: Method, splits: DataSplits, plan: Plan) -> None:
    """Begin it once, on one short example: what the base is not built for shows."""
    looked_at = splits.train[:LOOKED_AT]
    short = min(looked_at, key=lambda example: len(str(example.source)) + len(str(example.target)))
    rows, _ = encode([short], base.tokenizer, base.template, plan.max_length, apart=base.is_encoder_decoder)
    try:
        method.begin(
            AdapterInputs(base, [short], rows, plan.length, plan.seed, method.default, plan.instruction)
        )
    except WindowExceeded:
        pass  # of one example; what follows says it of all
    except ForewordError as error:
        raise type(error)(f"{method.name}: {error}") from error
