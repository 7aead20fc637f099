"""Owners who write differently, for experiments with tiny models."""

from __future__ import annotations

import random

from foreword import Example


def owners_examples(owners: str = "abc", count: int = 6, seed: int = 0) -> list[Example]:
    """`count` examples of each owner; a target repeats the owner's own letter, whatever the source."""
    generator = random.Random(seed)
    return [
        Example("".join(generator.choice("stuv") for _ in range(5)), owner * generator.randint(3, 5), owner)
        for owner in owners
        for _ in range(count)
    ]
