"""Several references of the same source, brought together."""

from __future__ import annotations

import json
from collections.abc import Iterable

from foreword.examples.example import Example
from foreword.template import Source


def references(examples: Iterable[Example]) -> list[tuple[Source, list[str]]]:
    """Each distinct source of each owner with all its targets, for metrics with several references.

    Sources come in the order in which they are first seen, targets in theirs; nothing is dropped.
    """
    groups: dict[tuple[str | None, bool, str], tuple[Source, list[str]]] = {}
    for example in examples:
        is_text = isinstance(example.source, str)
        key = (example.owner, is_text, str(example.source) if is_text else json.dumps(example.source))
        groups.setdefault(key, (example.source, []))[1].append(example.target)
    return list(groups.values())
