"""The E2E NLG challenge: its CSV, and the lines that the original prefix-tuning code reads.

Both become the same examples: `name : The Vaults | Type : pub | price : more than £30 | ...`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from foreword.examples.csv_table import find_columns, read_rows
from foreword.examples.example import Example
from foreword.examples.records import Fields, Line, excerpt

COLUMNS = ["mr", "ref"]
BETWEEN = "||"  # between source and target in the original code's files

# How XiangLi1999/PrefixTuning names the slots; the others keep the challenge's names.
_RENAMED = {
    "eatType": "Type",
    "priceRange": "price",
    "customerrating": "customer rating",
    "familyFriendly": "family friendly",
}
_SLOT = re.compile(r"([^\[\],]+)\[([^\[\]]*)\]\s*(?:,|$)")


def read_e2e(lines: Iterator[Line], fields: Fields) -> Iterator[Example]:
    """Examples of the challenge's CSV (columns mr, ref) or of `source||target` lines.

    Raises:
        BadExamples: names the line whose meaning representation or reference can't be read.
    """
    first = next((line for line in lines if not line.blank), None)
    if first is None:
        return
    rest = itertools.chain([first], lines)
    if find_columns(first, COLUMNS):
        for line, row in read_rows(rest, COLUMNS):
            yield line.example(linearise(line, row["mr"]), row["ref"].strip(), None)
        return
    for line in rest:
        if not line.blank:
            source, target = _halves(line)
            yield line.example(source, target, None)


def linearise(line: Line, meaning: str) -> str:
    """`name[The Vaults], eatType[pub]` as `name : The Vaults | Type : pub`.

    Raises:
        BadExamples: `meaning` is no list of slots with values in brackets.
    """
    slots = []
    position = 0
    while (match := _SLOT.match(meaning, position)) and (slot := match[1].strip()):
        slots.append(f"{_RENAMED.get(slot, slot)} : {match[2].strip()}")
        position = match.end()
    if not slots or position < len(meaning):
        raise line.fault(
            f"mr is {excerpt(meaning)}; expected slots with their values, as in name[The Vaults], "
            "eatType[pub]"
        )
    return " | ".join(slots)


def _halves(line: Line) -> tuple[str, str]:
    halves = line.text.split(BETWEEN)
    if len(halves) != 2:
        raise line.fault(
            f"found {BETWEEN} {len(halves) - 1} times in {excerpt(line.text)}; expected "
            f"source{BETWEEN}target, or a first line that names the columns mr and ref"
        )
    return halves[0].strip(), halves[1].strip()
