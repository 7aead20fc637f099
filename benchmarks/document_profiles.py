"""Twenty short profiles of invented firms, alike in form, with four questions about each: for joining."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from foreword import Example

_TEXT = """# {name}

{name} is a firm in {town} that has made {product} since {year}. It was founded by {founder}, who
began in a shed with two helpers and a borrowed cart. Today {staff} people work there, and the
director is {director}.

The workshop stands at {street} and can be visited on any {day} afternoon. Visitors are shown how
{product} are made from {material}, and may try it themselves. The sign above the door shows
{animal}, which the founder is said to have kept as a pet.

Most of what the firm makes is sold to {market}. In the last year it won {prize}, a prize that is
given to one firm in the country, and celebrated with a dinner for all who work there and their
families.
"""

_QUESTIONS = (
    ("Who founded {name}?", "{founder}."),
    ("At which address is the workshop of {name}?", "At {street}."),
    ("What are the {product} of {name} made from?", "From {material}."),
    ("Which prize did {name} win in the last year?", "It won {prize}."),
)


@dataclass(frozen=True)
class Profile:
    """A short document and questions about it."""

    name: str
    text: str
    questions: list[Example]


def _profiles() -> list[Profile]:
    path = Path(__file__).with_suffix(".csv")
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Profile(
                facts["name"],
                _TEXT.format(**facts),
                [
                    Example(question.format(**facts), answer.format(**facts))
                    for question, answer in _QUESTIONS
                ],
            )
            for facts in csv.DictReader(file)
        ]


PROFILES = _profiles()
