"""Answers checked against the text that they are about: whether it has their numbers, dates and names.

Models that write questions and answers about a text invent some. What is checked is what a wrong answer most
often has and a right one never has: a number, a date or a name that stands nowhere in the text. It proves no
answer. Names are told by their capital letter, so in German every noun has to stand in the text.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

LONGEST_ANSWER = 8000  # characters
STEM = 4
"""Letters that two forms of a name have in common, at least, such as Berlin and Berliners."""
ENDING = 3
"""Letters by which the longer form may be longer."""

_MONTHS = re.findall(
    r"\w+",
    "January February March April May June July August September October November December",
)
_NUMBER_WORDS = {
    word: str(number)
    for number, word in enumerate(
        re.findall(
            r"\w+",
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
            "fifteen sixteen seventeen eighteen nineteen twenty",
        )
    )
} | {"thirty": "30", "forty": "40", "fifty": "50", "sixty": "60", "seventy": "70", "eighty": "80"}
_NUMBER_WORDS |= {"ninety": "90", "hundred": "100", "thousand": "1000", "dozen": "12"}
_NO_NUMBERS = {"zero", "one", "two", "hundred", "thousand", "dozen"}  # part of many a phrase, or of a number
# They begin sentences and are no names; no text is about them.
_ORDINARY = frozenset(
    re.findall(
        r"\w+",
        "a an and any all as at both but by each either every for from he her here his how i if in into "
        "it its many most my neither no none not of on once one only or our several she so some that the "
        "their then there these they this those to under until we what when where which while who with "
        "yes you your because after before between during only about approximately around over up true "
        "false never always",
    )
)

_ENDING = re.compile(r"(?<=\w{3})(?:ing|ed|es|s)$")
_MARKER = re.compile(r"^[^\S\n]*(?:\d{1,3}[.)]|[-*•])\s+", re.MULTILINE)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_SPACED = re.compile(r"(?<![\d.,])\d{1,3}(?:[ \xa0\u202f'’]\d{3})+(?![\d])")
_WORD = re.compile(r"[^\W\d_]+(?:['’&.-][^\W\d_]+)*")
_SENTENCE_START = re.compile(r"(?:^|[.!?:…|\n][\"'”’)\]*_]*)\s*[\"'“‘(\[*_#-]*\s*$")

_MONTH = rf"(?P<month>{'|'.join(f'{name[:3]}(?:{name[3:]})?' for name in _MONTHS)})\b\.?"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?P<year>\d{4})"
_DATES = tuple(
    re.compile(pattern)
    for pattern in (
        rf"\b{_YEAR}-(?P<number>\d\d?)-(?P<day>\d\d?)\b",
        rf"\b(?P<day>\d\d?)\.\s?(?P<number>\d\d?)\.\s?{_YEAR}\b",
        rf"\b(?P<day>\d\d?)/(?P<number>\d\d?)/{_YEAR}",
        rf"\b(?:(?P<first>\d{{1,2}})(?:st|nd|rd|th)?\s*(?:[-–—]|to|and|until)\s*)?{_DAY}(?:\s+of)?\s+{_MONTH}"
        rf"(?:,?\s+{_YEAR}\b)?",
        rf"\b{_MONTH}\s+{_DAY}\b(?:\s*(?:[-–—]|to|and|until)\s*(?P<first>\d{{1,2}})\b)?(?:,?\s+{_YEAR}\b)?",
        rf"\b{_MONTH}\s+(?:of\s+)?{_YEAR}\b",
    )
)

Date = tuple[int | None, int, int | None]
"""Year, month, day; None where it is not said."""


@dataclass(frozen=True)
class Facts:
    """What a text has that an answer may have.

    Attributes:
        numbers: in one spelling, with a point and without trailing zeros.
        words: in small letters.
        stems: their first `STEM` letters, with the words that begin so.
    """

    numbers: frozenset[str]
    dates: frozenset[Date]
    words: frozenset[str]
    stems: dict[str, tuple[str, ...]]


def facts_of(text: str) -> Facts:
    """What of a text answers are checked against."""
    numbers = {reading for one in _NUMBER.findall(text) for reading in _readings(one)}
    numbers |= {re.sub(r"\D", "", one) for one in _SPACED.findall(text)}
    for hour, minute in re.findall(r"(?<!\d)(\d\d?):(\d\d)(?!\d)", text):
        numbers |= _readings(f"{hour}.{minute}")  # as some write it
    words = {_bare(word) for word in _WORD.findall(text)}
    words |= {part for word in words for part in re.split(r"[-&.’']", word) if part}
    numbers |= {_NUMBER_WORDS[word] for word in words if word in _NUMBER_WORDS}
    stems: defaultdict[str, list[str]] = defaultdict(list)
    for word in sorted(words):
        stems[word[:STEM]].append(word)
    dates = frozenset(date for _, found in _dates(text) for date in found)
    return Facts(frozenset(numbers), dates, frozenset(words), {k: tuple(v) for k, v in stems.items()})


def fault_of(question: str, answer: str, facts: Facts) -> str | None:
    """Why an answer can't be right, or None: "empty", "too long", "repeats the question", or "number", "date"
    or "name" where it has one that stands neither in the text nor in the question."""
    answer = answer.strip()
    if not answer or not question.strip():
        return "empty"
    if len(answer) > LONGEST_ANSWER:
        return "too long"
    if answer.casefold() == question.strip().casefold():
        return "repeats the question"
    asked = facts_of(question)
    left = _MARKER.sub("\n", answer)
    for written, dates in reversed(_dates(left)):
        if not any(_same(one, other) for one in dates for other in facts.dates | asked.dates):
            return "date"
        year = written["year"] or ""  # which the date that it is like need not have
        left = f"{left[: written.start()]}{year}{left[written.end() :]}"
    if any(not readings & (facts.numbers | asked.numbers) for readings in _numbers(left, facts)):
        return "number"
    if any(not (_stands(name, facts) or _stands(name, asked)) for name in _names(left)):
        return "name"
    return None


# -- numbers and dates ---------------------------------------------------------------------------


def _numbers(text: str, facts: Facts) -> list[set[str]]:
    """The readings of every number of an answer; those with spaces in them only where the text has them."""

    def known(match: re.Match[str]) -> str:
        return " " if re.sub(r"\D", "", match[0]) in facts.numbers else match[0]

    found = [_readings(one) for one in _NUMBER.findall(_SPACED.sub(known, text))]
    words = (word.casefold() for word in _WORD.findall(text))
    return found + [{_NUMBER_WORDS[w]} for w in words if w in _NUMBER_WORDS and w not in _NO_NUMBERS]


def _readings(number: str) -> set[str]:
    """What a number with points and commas can mean: 1.311 is one and a bit, or one thousand and more."""
    made = set()
    for group, point in ((",", "."), (".", ",")):
        whole, *rest = number.split(point)
        groups = whole.split(group)
        grouped = len(groups) > 1 and len(groups[0]) <= 3 and all(len(one) == 3 for one in groups[1:])
        if len(rest) <= 1 and (grouped or len(groups) == 1) and not (rest and group in rest[0]):
            decimals = rest[0].rstrip("0") if rest else ""
            made.add(("".join(groups).lstrip("0") or "0") + (f".{decimals}" if decimals else ""))
    if made:
        return made
    return {number}  # a version or a number of a section, such as 3.2.1


def _dates(text: str) -> list[tuple[re.Match[str], set[Date]]]:
    """The dates of a text in its order, each with what it can mean."""
    found: list[tuple[re.Match[str], set[Date]]] = []
    end = -1
    matches = [match for pattern in _DATES for match in pattern.finditer(text)]
    for match in sorted(matches, key=lambda match: (match.start(), -match.end())):
        if match.start() < end:
            continue
        given = match.groupdict()
        year = int(given["year"]) if given.get("year") else None
        days = [int(given[part]) for part in ("day", "first") if given.get(part)]
        if given.get("number"):
            first, second = int(given["number"]), days[0]
            dates: set[Date] = {(year, first, second)}
            if "/" in match[0]:
                dates.add((year, second, first))
        else:
            month = 1 + next(n for n, name in enumerate(_MONTHS) if name.startswith(given["month"][:3]))
            dates = {(year, month, day) for day in days} or {(year, month, None)}
        dates = {date for date in dates if 1 <= date[1] <= 12 and 1 <= (date[2] or 1) <= 31}
        if dates:
            found.append((match, dates))
            end = match.end()
    return found


def _same(one: Date, other: Date) -> bool:
    return all(a == b or a is None or b is None for a, b in zip(one, other, strict=True))


# -- names -----------------------------------------------------------------------------------------


def _bare(word: str) -> str:
    return re.sub(r"['’]s?$", "", word.casefold())


def _names(text: str) -> list[str]:
    """Words with a capital letter that are not capital because a sentence begins there."""
    names = []
    words = list(_WORD.finditer(text))
    for place, match in enumerate(words):
        word = match[0]
        if not word[0].isupper() or _bare(word) in ("i", *_ORDINARY) or re.match(r"I['’]", word):
            continue
        if _SENTENCE_START.search(text, max(0, match.start() - 12), match.start()):
            following = words[place + 1] if place + 1 < len(words) else None
            joined = following is not None and text[match.end() : following.start()] == " "
            named = joined and following is not None and following[0][0].isupper()
            alone = len(words) <= 3  # such an answer is the name that was asked for
            if not (named or alone or any(letter.isupper() for letter in word[1:])):
                continue
        names.append(word)
    return names


def _stands(name: str, facts: Facts) -> bool:
    word = _bare(name)
    if word in facts.words or word in _NUMBER_WORDS:
        return True
    parts = [part for part in re.split(r"[-&.’']", word) if part]
    if len(parts) > 1 and all(part in facts.words for part in parts):
        return True
    if len(word) < STEM:
        return False
    return any(
        abs(len(other) - len(word)) <= ENDING and (other.startswith(word) or word.startswith(other))
        for other in facts.stems.get(word[:STEM], ())
    )


# -- which part a text is about ----------------------------------------------------------------------


class PartFinder:
    """Which of a document's parts a question and its answer are about, by the words they have in common.

    Rare words count more than those of every part, as in retrieval by TF-IDF.
    """

    def __init__(self, parts: Sequence[str]) -> None:
        self._parts = len(parts)
        self._places: defaultdict[str, list[int]] = defaultdict(list)
        for number, part in enumerate(parts):
            for word in _content_words(part):
                self._places[word].append(number)

    def find(self, text: str) -> tuple[int, float]:
        """The part that has most of a text's words, and how much of their weight it has, from 0 to 1."""
        weights: defaultdict[int, float] = defaultdict(float)
        whole = 0.0
        for word in _content_words(text):
            places = self._places.get(word, [])
            weight = math.log(1 + self._parts / max(1, len(places)))
            whole += weight
            for number in places:
                weights[number] += weight
        if not weights:
            return 0, 0.0
        best = max(sorted(weights), key=weights.__getitem__)
        return best, weights[best] / whole


def _content_words(text: str) -> set[str]:
    """Words that say what a text is about, without their endings, and numbers."""
    words = (_bare(word) for word in _WORD.findall(text))
    found = {_ENDING.sub("", word)[:6] for word in words if len(word) > 3 and word not in _ORDINARY}
    return found | {reading for one in _NUMBER.findall(text) for reading in _readings(one)}
