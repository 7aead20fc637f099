"""Workloads: what is measured on. Examples of a file or invented ones, and training steps of a stated size.

The invented examples are of the size of the E2E challenge's (about 30 tokens of attributes, 25 of text) and
repeat each source, as that data does. A step of stated size is on random tokens that no two rows share.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from foreword.base.base_model import BaseModel
from foreword.encoding import EncodedExample
from foreword.errors import UsageError
from foreword.examples import Example, read_examples
from foreword.research.bench import roofline
from foreword.training.settings import make_settings
from foreword.training.trainer import Trainer, build_trainer

NAMES = ("Copper Pot", "Blue Heron", "Lantern", "Old Mill", "Seven Stairs", "Garden Gate", "Wren", "Anchor")
KINDS = ("pub", "restaurant", "coffee shop", "bistro")
FOODS = ("English", "Thai", "Italian", "Indian", "Japanese", "French")
PRICES = ("cheap", "moderate", "high", "less than 20")
PLACES = ("riverside", "city centre", "harbour", "station")
OPENINGS = ("Near", "Not far from", "A short walk from", "Close to")
MANY = 2048
REFERENCES = 8
"""Texts of one source."""

TARGETS = 4
"""A fourth of each row of random tokens is target."""


def examples(path: Path | None, count: int) -> list[Example]:
    """`count` examples of the file, or invented ones.

    Raises:
        UsageError: the file has fewer.
        BadExamples, CannotRead: see `read_examples`.
    """
    if path is None:
        return invented(max(count, MANY))  # so many that random batches seldom share a source
    of_file = read_examples(path)
    if len(of_file) < count:
        raise UsageError(
            f"{path} has {len(of_file)} examples; these rounds need {count}. Ask for fewer rounds"
        )
    return of_file


def invented(count: int, seed: int = 0) -> list[Example]:
    """Attributes and a sentence that says them."""
    draw = random.Random(seed).choice
    made: list[Example] = []
    while len(made) < count:
        name, kind, food = draw(NAMES), draw(KINDS), draw(FOODS)
        price, place, near = draw(PRICES), draw(PLACES), draw(NAMES)
        source = (
            f"name : The {name} | Type : {kind} | food : {food} | price : {price} | area : {place} | "
            f"near : The {near}"
        )
        for number in range(REFERENCES):
            target = (
                f"{OPENINGS[number % 4]} The {near}, at the {place}, The {name} is a {kind} that serves "
                f"{food} food at prices that are {price}."
            )
            made.append(Example(source, target))
    return made[:count]


@dataclass(frozen=True)
class Workload:
    """Sizes of one training step.

    Attributes:
        rows: of the batch, over all owners.
        text: tokens of each row.
        length: P, virtual tokens of each prefix.
        owners: each with a prefix of its own, and as many of the rows.
    """

    rows: int
    text: int
    length: int
    owners: int = 1


def random_rows(base: BaseModel, work: Workload) -> list[EncodedExample]:
    """`rows` rows of random tokens; the first of each is its own, so that none begin alike."""
    vocabulary = int(base.model.get_input_embeddings().weight.shape[0])
    generator = random.Random(0)
    targets = max(1, work.text // TARGETS)
    made = []
    for row in range(work.rows):
        ids = [row % vocabulary, *(generator.randrange(vocabulary) for _ in range(work.text))]
        made.append(EncodedExample(tuple(ids[:-targets]), tuple(ids[-targets:])))
    return made


def trainers(base: BaseModel, work: Workload) -> list[Trainer]:
    """One for each owner."""
    rows = random_rows(base, work)
    size = work.rows // work.owners
    settings = make_settings(length=work.length, batch_size=size, steps=1_000_000, init="random")
    return [
        build_trainer(base, settings, rows[owner * size : (owner + 1) * size], [])
        for owner in range(work.owners)
    ]


def operations(base: BaseModel, work: Workload) -> int:
    """Of one step; see roofline.py."""
    return roofline.training_step(base, random_rows(base, work), work.length)
