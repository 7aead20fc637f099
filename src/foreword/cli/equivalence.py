"""foreword store equate, equivalences: declare that prefixes of one base run on another, and at what loss."""

from __future__ import annotations

import gc
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from foreword.base.options import ModelOptions
from foreword.cli import output
from foreword.cli.options import DATA, StoreOptions, argument, json_option
from foreword.errors import UsageError, WrongBaseModel
from foreword.validation import setting

if TYPE_CHECKING:
    from foreword.prefix import Prefix
    from foreword.store import Equivalence, PrefixStore

TOLERANCE = 0.1
"""Nats per target token: what a declaration may cost, unless it is said otherwise."""
COLUMNS = ("trained for", "runs on", "loss difference", "by", "declared")
BASE = "A base: alias, folder, Hugging Face id or fingerprint"


@dataclass(frozen=True)
class DeclaringOptions(StoreOptions):
    """The store that keeps declarations, and how the command answers."""

    json: bool = json_option(section=None)


def equate(
    trained: str = argument(..., help=f"{BASE}; its prefixes are to run on OTHER."),
    other: str = argument(..., help=f"{BASE}; such as an AWQ, GPTQ or FP8 copy of it."),
    data: Path | None = setting(None, section=DATA, help="Measure the loss on this file of examples"),
    prefix: list[str] | None = setting(
        None,
        section=DATA,
        metavar="PREFIX",
        help="With this prefix of TRAINED, a file or owner/name; repeatable",
    ),
    tolerance: float = setting(
        TOLERANCE, section=DATA, metavar="NATS", help="Refuse a larger difference per target token"
    ),
    loss_difference: float | None = setting(
        None, section=DATA, metavar="NATS", help="Measured elsewhere: take this in the place of --data"
    ),
    by: str | None = setting(None, help="Who declares it; the store's caller when left out"),
    remove: bool = setting(False, help="Take the declaration back"),
    *,
    options: ModelOptions,
    store: DeclaringOptions,
) -> None:
    """Declare that prefixes trained for one base run on another, such as a quantised copy of it.

    Measures the mean loss per target token on both, one after the other, without a prefix and with each that
    is given, and keeps it with who declared it and when. Nothing is kept above the tolerance.

    Example: foreword store equate qwen3-8b qwen3-8b-awq --data dev.jsonl --prefix alice/reviews --by alice
    """
    from foreword.store.equivalence import check_pair

    given = [data is not None, loss_difference is not None, remove]
    if sum(given) != 1:
        raise UsageError("say what they differ by: --data FILE to measure, or --loss-difference; or --remove")
    if prefix and data is None:
        raise UsageError("--prefix says what to measure with; give --data FILE, too")
    if not (tolerance >= 0 and math.isfinite(tolerance)):
        raise UsageError(f"--tolerance is {tolerance}; expected a number of nats, 0 or more")
    pair = tuple(_fingerprint(base, long_context=options.long_context) for base in (trained, other))
    with store.opened(create=not remove) as opened:
        if remove:
            opened.withdraw_equivalent(*pair)
            text = f"prefixes of {pair[0][:12]} no longer run on {pair[1][:12]}"
            return output.tell({"trained": pair[0], "other": pair[1], "removed": True}, text, json=store.json)
        if data is None:
            assert loss_difference is not None
            difference = loss_difference
            facts: dict[str, Any] = {"trained": {"name": trained}, "other": {"name": other}}
        else:
            check_pair(*pair)  # before minutes of measuring
            prefixes = _prefixes(opened, prefix or ())
            pair, difference, facts = _measured(trained, other, data, prefixes, options, quiet=store.json)
        if not abs(difference) <= tolerance:
            raise WrongBaseModel(
                f"the loss differs by {difference:+.4f} nats per target token, more than {tolerance}; train "
                "prefixes on the base that they run on, or allow it with --tolerance. Nothing was declared"
            )
        made = opened.declare_equivalent(*pair, loss_difference=difference, by=by, facts=facts)
    text = (
        f"prefixes of {trained} ({made.trained[:12]}) run on {other} ({made.other[:12]}): loss "
        f"{made.loss_difference:+.4f} nats per target token, declared by {made.declared_by}"
    )
    output.tell(made.to_json(), text, json=store.json)


def equivalences(*, store: DeclaringOptions) -> None:
    """List which bases were declared to run prefixes of which others.

    Example: foreword store equivalences --json
    """
    with store.opened() as opened:
        declared = opened.equivalences()
    if store.json:
        return output.json_object({"equivalences": [one.to_json() for one in declared]})
    output.table(COLUMNS, [_row(one) for one in declared])


def _row(one: Equivalence) -> tuple[str, ...]:
    names = [
        f"{one.facts.get(which, {}).get('name', '')} {value[:12]}".strip()
        for which, value in (("trained", one.trained), ("other", one.other))
    ]
    return (*names, f"{one.loss_difference:+.4f}", one.declared_by, one.declared[:19])


def _fingerprint(base: str, *, long_context: bool) -> str:
    """Of a base by name, without its being loaded; a fingerprint is taken as it is.

    Raises as `resolve`, and UsageError: `long_context` for a model without LongRoPE.
    """
    if re.fullmatch(r"[0-9a-f]{64}", base):
        return base
    from foreword.models import resolve
    from foreword.models.fingerprint import fingerprint

    folder = resolve(base, notify=lambda line: typer.echo(line, err=True)).path
    if not long_context:
        return fingerprint(folder)
    from transformers import AutoConfig

    from foreword.base.rope import long_fingerprint, take_long_factors

    take_long_factors(AutoConfig.from_pretrained(folder))  # refuses a model that has none
    return long_fingerprint(fingerprint(folder))


def _prefixes(store: PrefixStore, names: Sequence[str]) -> list[Prefix]:
    from foreword.prefix import Prefix

    return [Prefix.load(name) if Path(name).is_file() else store.get(name) for name in dict.fromkeys(names)]


def _measured(
    trained: str, other: str, data: Path, prefixes: list[Prefix], options: ModelOptions, *, quiet: bool
) -> tuple[tuple[str, str], float, dict[str, Any]]:
    """The fingerprints of what was loaded, the loss difference, and what was measured."""
    from foreword.cli.loading import load_base
    from foreword.evaluation.equivalence import facts_of, loss_difference, losses_of
    from foreword.examples import read_examples

    examples = read_examples(data)
    counter = output.Counter()

    def measured(name: str, equivalent: frozenset[str]) -> Any:
        base = load_base(name, options)
        base.equivalent |= equivalent
        return losses_of(
            base, examples, prefixes, on_progress=lambda done, total: counter(f"loss on {name}", done, total)
        )

    first = measured(trained, frozenset())
    gc.collect()  # one base in memory at a time
    second = measured(other, frozenset({first.fingerprint}))
    difference, facts = loss_difference(first, second), facts_of(first, second)
    if not quiet:
        rows = [
            (
                row["prefix"] or "none",
                f"{row['trained']:.4f}",
                f"{row['other']:.4f}",
                f"{row['other'] - row['trained']:+.4f}",
            )
            for row in facts["losses"]
        ]
        output.table(("prefix", trained, other, "difference"), rows)
    return (first.fingerprint, second.fingerprint), difference, facts
