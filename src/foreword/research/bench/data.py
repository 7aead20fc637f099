"""Data to measure on: a file of the user's, or invented descriptions of restaurants.

The invented ones are of the size of the E2E challenge's (about 30 tokens of attributes, 25 of text) and
repeat each source, as that data does.
"""

from __future__ import annotations

import random
from pathlib import Path

from foreword.errors import UsageError
from foreword.examples import Example, read_examples

NAMES = ("Copper Pot", "Blue Heron", "Lantern", "Old Mill", "Seven Stairs", "Garden Gate", "Wren", "Anchor")
KINDS = ("pub", "restaurant", "coffee shop", "bistro")
FOODS = ("English", "Thai", "Italian", "Indian", "Japanese", "French")
PRICES = ("cheap", "moderate", "high", "less than 20")
PLACES = ("riverside", "city centre", "harbour", "station")
MANY = 2048
REFERENCES = 8
"""Texts of one source."""


def examples(path: Path | None, count: int) -> list[Example]:
    """`count` examples of the file, or invented ones.

    Raises:
        UsageError: the file has fewer.
        BadExamples, CannotRead: see `read_examples`.
    """
    if path is None:
        return invented(max(count, MANY))  # so many that random batches seldom share a source
    found = read_examples(path)
    if len(found) < count:
        raise UsageError(f"{path} has {len(found)} examples; these rounds need {count}. Ask for fewer rounds")
    return found


def invented(count: int, seed: int = 0) -> list[Example]:
    """Attributes and a sentence that says them."""
    chance = random.Random(seed)
    made: list[Example] = []
    while len(made) < count:
        name, kind, food = chance.choice(NAMES), chance.choice(KINDS), chance.choice(FOODS)
        price, place, near = chance.choice(PRICES), chance.choice(PLACES), chance.choice(NAMES)
        source = (
            f"name : The {name} | Type : {kind} | food : {food} | price : {price} | area : {place} | "
            f"near : The {near}"
        )
        for number in range(REFERENCES):
            openings = ("Near", "Not far from", "A short walk from", "Close to")
            made.append(
                Example(
                    source,
                    f"{openings[number % 4]} The {near}, at the {place}, The {name} is a {kind} that serves "
                    f"{food} food at prices that are {price}.",
                )
            )
    return made[:count]
