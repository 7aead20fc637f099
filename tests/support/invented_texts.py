"""Invented system outputs with references, the same on every machine: what official scripts were run on.

Their printed digits are in `official_digits.py`. Whoever changes a word here has to run the scripts again.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass

NAMES = (
    "The Copper Kettle",
    "Café Lumière",
    "Old Mill Inn",
    "O'Dwyer's",
    "Blue & Gold",
    "Zur Brücke",
    "Nine Elms",
)
FOODS = ("Thai", "vegetarian", "fish", "home-made", "Italian", "curry")
PRICES = ("£20-25", "less than £12", "more than £30", "cheap", "€9.50")
PLACES = ("Quayside", "Market Street", "the Northern Gate", "St. Anne's Square")
MARKS = ("5 out of 5", "3.5", "low", "1 out of 5", "average")
# The categories of WebNLG 2017, which its script expects; the last five are in its test set alone.
CATEGORIES = (
    "Astronaut", "Airport", "Monument", "University", "Food", "SportsTeam", "City", "Building", "WrittenWork",
    "ComicsCharacter", "Politician", "Athlete", "MeanOfTransportation", "Artist", "CelestialBody",
)  # fmt: skip

SENTENCES = (
    "{name} serves {food} food near {place}.",
    "Near {place} you will find {name}, a {food} restaurant; its prices are {price}.",
    "{name} is a {food} place with a customer rating of {mark}.",
    "With {food} dishes at {price}, {name} (near {place}) is rated {mark}.",
    'They call it "{name}": {food} food, {price}, and a rating of {mark}!',
    "If you like {food} food and don't mind paying {price}, try {name} - it's close to {place}.",
    "{name} offers {food} cooking. It is rated {mark} and lies near {place}.",
)
SPARE = ("really", "very", "the", "a", "restaurant", "food", "children", "1,000", "2013", "U.S.")


@dataclass(frozen=True)
class Invented:
    """One system output, what it was made from, and what people might have written."""

    source: str
    references: tuple[str, ...]
    output: str
    category: str


def invented_texts(count: int = 60) -> list[Invented]:
    """`count` of them; one reference each to five."""
    # Of all that `random` offers, only the numbers of random() are promised never to change.
    chance = random.Random(20).random

    def one_of(things: tuple[str, ...]) -> str:
        return things[int(chance() * len(things))]

    made = []
    for place in range(count):
        facts = {
            "name": one_of(NAMES),
            "food": one_of(FOODS),
            "price": one_of(PRICES),
            "place": one_of(PLACES),
            "mark": one_of(MARKS),
        }
        first = int(chance() * len(SENTENCES))
        number = 1 + int(chance() * 5)
        references = tuple(
            SENTENCES[(first + step) % len(SENTENCES)].format(**facts) for step in range(number)
        )
        told = dict(facts)
        if chance() < 0.4:
            told["mark"] = one_of(MARKS)
        if chance() < 0.2:
            told["name"] = one_of(NAMES)
        words = SENTENCES[(first + int(chance() * 3)) % len(SENTENCES)].format(**told).split(" ")
        for _ in range(int(chance() * 4)):
            where = int(chance() * len(words))
            kind = chance()
            if kind < 0.4 and len(words) > 3:
                del words[where]
            elif kind < 0.7:
                words.insert(where, one_of(SPARE))
            else:
                other = int(chance() * len(words))
                words[where], words[other] = words[other], words[where]
        if place % 20 == 7:
            words = words[:2]
        source = " | ".join(f"{slot} : {value}" for slot, value in facts.items())
        made.append(Invented(source, references, " ".join(words), CATEGORIES[place % len(CATEGORIES)]))
    return made


def with_empty_outputs(texts: list[Invented]) -> list[Invented]:
    """Every tenth output replaced by nothing, the last one among them."""
    return [
        Invented(one.source, one.references, "", one.category) if place % 10 == 9 else one
        for place, one in enumerate(texts)
    ]


def digest(texts: list[Invented]) -> str:
    """SHA-256 of references and outputs."""
    rows = [[one.references, one.output] for one in texts]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
