"""A document in parts: chunks of a few hundred tokens, along its headings, paragraphs and sentences."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

HEADING = re.compile(r"^(#{1,6})\s+(.*?)\s*#*\s*$", re.MULTILINE)
"""A heading of Markdown, which `reading.py` makes of those of other formats."""

_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+(?=[\"'“‘(\[]?[A-ZÀ-ÖØ-Þ0-9])")


@dataclass(frozen=True)
class Chunk:
    """A part of a document that a model reads at once.

    Attributes:
        text: as it stands in the document, the heading of its section in front where that stands elsewhere.
        section: the heading that it stands under; "" in front of the first.
        start, end: where it stands in the document, in characters.
    """

    text: str
    section: str
    start: int
    end: int


def split(text: str, count: Callable[[str], int], most: int) -> list[Chunk]:
    """The chunks of a text, in its order: whole paragraphs of one section, while they have `most` tokens.

    Args:
        count: tokens of a text.
        most: tokens of a chunk. A paragraph that has more is divided at sentences, and a sentence at words.
    """
    chunks: list[Chunk] = []
    for section, start, end in sections(text):
        pieces = list(_pieces(text, start, end, count, most))
        first = 0
        while first < len(pieces):
            last = first
            while last + 1 < len(pieces) and count(text[pieces[first][0] : pieces[last + 1][1]]) <= most:
                last += 1
            begin, stop = pieces[first][0], pieces[last][1]
            own = text[begin:stop].strip()
            shown = own if not section or begin == start else f"# {section}\n\n{own}"
            if own and not (HEADING.fullmatch(own) and len(pieces) > 1):
                chunks.append(Chunk(shown, section, begin, stop))
            first = last + 1
    return chunks


def sections(text: str) -> list[tuple[str, int, int]]:
    """Each section's heading and place in characters, heading included; what has no text but a heading goes
    to the section behind it."""
    starts = [(match.group(2), match.start()) for match in HEADING.finditer(text)]
    if not starts or text[: starts[0][1]].strip():
        starts.insert(0, ("", 0))
    ends = [start for _, start in starts[1:]] + [len(text)]
    return [
        (name, start, end)
        for (name, start), end in zip(starts, ends, strict=True)
        if HEADING.sub("", text[start:end]).strip()
    ]


def sentences(text: str) -> list[str]:
    """The sentences of a text without its headings; lines of lists and tables are sentences of their own."""
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", HEADING.sub("", text)):
        listed = re.search(r"^\s*([-*|]|\d+[.)])\s*", paragraph, re.MULTILINE)
        for line in paragraph.splitlines() if listed else [" ".join(paragraph.split())]:
            found += [each.strip() for each in _SENTENCE_END.split(line) if each.strip()]
    return found


def _pieces(
    text: str, start: int, end: int, count: Callable[[str], int], most: int
) -> Iterator[tuple[int, int]]:
    """Places of paragraphs; of what is too long its sentences, and of those words."""
    for pattern in (r"\n\s*\n", _SENTENCE_END, r"\s+"):
        places = _divide(text, start, end, pattern)
        if len(places) > 1:
            break
    for begin, stop in places:
        if stop - begin < end - start and count(text[begin:stop]) > most:
            yield from _pieces(text, begin, stop, count, most)
        else:
            yield begin, stop


def _divide(text: str, start: int, end: int, pattern: str | re.Pattern[str]) -> list[tuple[int, int]]:
    places, begin = [], start
    for match in re.compile(pattern).finditer(text, start, end):
        if text[begin : match.start()].strip():
            places.append((begin, match.start()))
        begin = match.end()
    if text[begin:end].strip():
        places.append((begin, end))
    return places
