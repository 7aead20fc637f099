"""When two sources are the same; several references of one, brought together."""

from __future__ import annotations

import json
from collections.abc import Iterable

from foreword.examples.example import Example
from foreword.template import Source


def source_key(source: Source) -> tuple[bool, str]:
    """Equal for equal sources, and for no others; texts and messages never are."""
    is_text = isinstance(source, str)
    return is_text, str(source) if is_text else json.dumps(source)


def references(examples: Iterable[Example]) -> list[tuple[Source, list[str]]]:
    """Each distinct source of each owner with all its targets, for metrics with several references.

    Sources come in the order in which they are first seen, targets in theirs; nothing is dropped.
    """
    groups: dict[tuple[str | None, bool, str], tuple[Source, list[str]]] = {}
    for example in examples:
        key = (example.owner, *source_key(example.source))
        groups.setdefault(key, (example.source, []))[1].append(example.target)
    return list(groups.values())
