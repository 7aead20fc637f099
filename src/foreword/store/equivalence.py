"""Equivalence: that prefixes of one base run on another, as somebody has measured and declared.

A quantised copy of a model (AWQ, GPTQ, FP8) has other weights, so another fingerprint, and refuses prefixes
that were trained on the plain one. Whether they do as well there is a matter of measurement and of judgement:
nothing here follows from names, and every declaration says who made it and how much loss it costs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, select

from foreword.errors import UsageError
from foreword.store import access
from foreword.store.access import Caller, check_administrates
from foreword.store.database import insert
from foreword.store.record import Record
from foreword.store.schema import equivalence, now

LONGEST_NAME = 160
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Equivalence(Record):
    """Prefixes that were trained for one base may run on another; not the other way round.

    Attributes:
        trained: fingerprint of the base that they were trained for.
        other: fingerprint of the base that they run on, too.
        declared: when, UTC, ISO 8601.
        declared_by: who.
        loss_difference: mean loss per target token on `other` less that on `trained`, in nats.
        facts: what was measured, on what; see `foreword.evaluation.equivalence`.
    """

    trained: str
    other: str
    declared: str
    declared_by: str
    loss_difference: float
    facts: Mapping[str, Any]


def declare(
    connection: Connection,
    caller: Caller,
    trained: str,
    other: str,
    loss_difference: float,
    by: str | None,
    facts: Mapping[str, Any],
) -> Equivalence:
    """Add a declaration, or put it in the place of an older one about the same two bases."""
    check_administrates(caller, "declare bases equivalent")
    check_pair(trained, other)
    if isinstance(loss_difference, bool) or not isinstance(loss_difference, int | float):
        raise UsageError(
            f"loss_difference is {loss_difference!r}; expected a number, in nats per target token"
        )
    if not math.isfinite(loss_difference):
        raise UsageError(f"loss_difference is {loss_difference}; expected a finite number; measure it again")
    who = str(caller) if by is None else by.strip()
    if not 0 < len(who) <= LONGEST_NAME:
        raise UsageError(f"by has {len(who)} characters; expected 1 to {LONGEST_NAME}: who declares it")
    made = Equivalence(trained, other, now(), who, float(loss_difference), dict(facts))
    columns = {**vars(made), "facts": made.facts}
    row = insert(connection, equivalence).values(columns)
    changed = {name: value for name, value in columns.items() if name not in ("trained", "other")}
    connection.execute(row.on_conflict_do_update(index_elements=["trained", "other"], set_=changed))
    access.note(connection, caller, "equate", None, f"{trained} {other}")
    return made


def withdraw(connection: Connection, caller: Caller, trained: str, other: str) -> None:
    """Take a declaration back."""
    check_administrates(caller, "withdraw a declaration about bases")
    gone = connection.execute(delete(equivalence).filter_by(trained=trained, other=other))
    if gone.rowcount == 0:
        raise UsageError(
            f"nothing declares that prefixes of {trained[:12]} run on {other[:12]}",
            advice="store.equivalences() has what is declared",
            remedy="not declared",
        )
    access.note(connection, caller, "withdraw equivalence", None, f"{trained} {other}")


def listed(connection: Connection) -> tuple[Equivalence, ...]:
    """All declarations, oldest first."""
    query = select(equivalence).order_by(equivalence.c.declared, equivalence.c.trained, equivalence.c.other)
    return tuple(Equivalence(**row) for row in connection.execute(query).mappings())


def check_pair(trained: str, other: str) -> None:
    """Raises UsageError: no fingerprints, or one and the same."""
    for value in (trained, other):
        if not isinstance(value, str) or not _FINGERPRINT.fullmatch(value):
            raise UsageError(
                f"{value!r} is no fingerprint; expected 64 hexadecimal digits (base.fingerprint)"
            )
    if trained == other:
        raise UsageError(f"both bases have the weights {trained[:12]}; their prefixes run on both already")
