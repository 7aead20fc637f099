"""A document in parts: chunks of a few hundred tokens, along its headings, paragraphs and sentences."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

HEADING = re.compile(r"^#{1,6}[ \t]+(?P<heading>[^\n]*)$", re.MULTILINE)
"""A heading of Markdown, which `reading.py` makes of those of other formats."""

_MARKS = re.compile(rf"^ {{0,3}}(?P<fence>```+(?=[^`\n]*$)|~~~)|{HEADING.pattern}", re.MULTILINE)
"""Headings, and the lines between which code stands, whose comments look like headings."""

LONGEST_HEAD = 2000
"""Characters of a heading or a table's head that stands in front of each chunk below it."""

MOST_CHARACTERS = 50
"""Of a token, on average: some tokenizers make one token of a word however long."""

PIECE_TOKENS = 64
"""Of the pieces of a document that training starts from (Cartridges, arXiv 2506.06266)."""

_TABLE_LINE = re.compile(r"\s*\|.*\|\s*$")
_TABLE_RULE = re.compile(r"\s*\|[\s:|-]+\|\s*$")
_SENTENCE_END = re.compile(
    r"(?:(?<=[.!?…])|(?<=[.!?…][\"'”’)\]]))\s+(?=[\"'“‘(\[]?[A-ZÀ-ÖØ-Þ0-9])"
    r"|(?<=[。！？])(?![。！？”’」』）])\s*|(?<=[。！？][”’」』）])\s*"
)


@dataclass(frozen=True)
class Chunk:
    """A part of a document that a model reads at once.

    Attributes:
        text: as it stands in the document; the heading of its section, and the head of a table in whose
            rows it begins, in front where they stand elsewhere.
        section: the heading that it stands under; "" in front of the first.
        start, end: where it stands in the document, in characters.
        section_start: where its section begins; sections can have equal headings.
    """

    text: str
    section: str
    start: int
    end: int
    section_start: int = 0


def split(text: str, count: Callable[[str], int], most: int) -> list[Chunk]:
    """The chunks of a text, in its order: whole paragraphs of one section, while they have `most` tokens.

    Args:
        count: tokens of a text.
        most: tokens of a chunk. A paragraph that has more is divided at sentences, a sentence at words, and
            what has no spaces anywhere.
    """
    chunks: list[Chunk] = []
    heads = _table_heads(text)

    def size(part: str) -> int:
        return max(count(part), len(part) // MOST_CHARACTERS)

    for section, start, end in sections(text):
        pieces = list(_pieces(text, start, end, size, most))
        first = 0
        while first < len(pieces):
            last = first
            while last + 1 < len(pieces) and size(text[pieces[first][0] : pieces[last + 1][1]]) <= most:
                last += 1
            begin, stop = pieces[first][0], pieces[last][1]
            own = text[begin:stop].strip()
            if own and not HEADING.fullmatch(own):
                shown = f"{heads[begin]}\n{own}" if begin in heads else own
                if section and begin != start and len(section) <= LONGEST_HEAD:
                    shown = f"# {section}\n\n{shown}"
                chunks.append(Chunk(shown, section, begin, stop, start))
            first = last + 1
    return chunks


def sections(text: str) -> list[tuple[str, int, int]]:
    """Each section's heading and place in characters, heading included; what has no text but a heading goes
    to the section behind it."""
    starts = [(match["heading"].strip().rstrip("#").rstrip(), match.start()) for match in _headings(text)]
    if not starts or text[: starts[0][1]].strip():
        starts.insert(0, ("", 0))
    ends = [start for _, start in starts[1:]] + [len(text)]
    return [
        (name, start, end)
        for (name, start), end in zip(starts, ends, strict=True)
        if HEADING.sub("", text[start:end]).strip()
    ]


def _headings(text: str) -> Iterator[re.Match[str]]:
    fence: str | None = None
    for match in _MARKS.finditer(text):
        if (mark := (match["fence"] or "")[:3]) and fence in (None, mark):
            fence = mark if fence is None else None
        elif not mark and fence is None:
            yield match


def sentences(text: str) -> list[str]:
    """The sentences of a text without its headings and tables; items of lists are sentences of their own."""
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", HEADING.sub("", text)):
        lines = [line for line in paragraph.splitlines() if not _TABLE_LINE.match(line)]
        for line in lines if _is_listed("\n".join(lines)) else [" ".join(" ".join(lines).split())]:
            found += [each.strip() for each in _SENTENCE_END.split(line) if each.strip()]
    return found


def tables(text: str) -> list[tuple[list[str], list[list[str]]]]:
    """The heads and rows of Markdown tables."""
    found: list[tuple[list[str], list[list[str]]]] = []
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if number > 0 and _TABLE_RULE.match(line) and _TABLE_LINE.match(lines[number - 1]):
            rows = itertools.takewhile(_TABLE_LINE.match, lines[number + 1 :])
            found.append((_cells(lines[number - 1]), [_cells(row) for row in rows]))
    return found


def _table_heads(text: str) -> dict[int, str]:
    """The head of the table that each row stands in, by where the row begins."""
    heads: dict[int, str] = {}
    place, first_lines, head = 0, 0, ""
    for line in text.split("\n"):
        if not _TABLE_LINE.match(line):
            first_lines, head = 0, ""
        elif first_lines < 2:
            is_head = first_lines == 0 or _TABLE_RULE.match(line)
            head = f"{head}\n{line}".lstrip("\n") if is_head else ""
            first_lines += 1
        elif head and len(head) <= LONGEST_HEAD:
            heads[place] = head
        place += len(line) + 1
    return heads


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _is_listed(text: str) -> bool:
    return re.search(r"^[^\S\n]*([-*|]|\d+[.)])\s", text, re.MULTILINE) is not None


def _pieces(
    text: str, start: int, end: int, count: Callable[[str], int], most: int
) -> Iterator[tuple[int, int]]:
    """Places of paragraphs; of what is too long its lines in lists and tables, its sentences, its words, its
    halves."""
    places = [(start, end)]
    for pattern in (r"\n\s*\n", r"\n", _SENTENCE_END, r"\s+"):
        if pattern == r"\n" and not _is_listed(text[start:end]):
            continue
        places = _divide(text, start, end, pattern)
        if len(places) > 1:
            break
    for begin, stop in places:
        if stop - begin < 2 or count(text[begin:stop]) <= most:
            yield begin, stop
        elif stop - begin < end - start:
            yield from _pieces(text, begin, stop, count, most)
        else:
            middle = (begin + stop) // 2
            yield from _pieces(text, begin, middle, count, most)
            yield from _pieces(text, middle, stop, count, most)


def _divide(text: str, start: int, end: int, pattern: str | re.Pattern[str]) -> list[tuple[int, int]]:
    places, begin = [], start
    for match in re.compile(pattern).finditer(text, start, end):
        if text[begin : match.start()].strip():
            places.append((begin, match.start()))
        begin = match.end()
    if text[begin:end].strip():
        places.append((begin, end))
    return places


def pieces(ids: Sequence[int], wanted: int, seed: int) -> list[int]:
    """So many of a document's tokens, in pieces of about `PIECE_TOKENS`.

    Pieces stand in the document's order and begin at random, so that each part of the text is as likely.
    """
    rng = random.Random(seed)
    count = max(1, round(wanted / PIECE_TOKENS))
    sizes = [wanted * (n + 1) // count - wanted * n // count for n in range(count)]
    spread = [len(ids) * n // count for n in range(count + 1)]
    found: list[int] = []
    for size, low, high in zip(sizes, spread, spread[1:], strict=False):
        begin = rng.randint(low, max(low, high - size))
        found += ids[begin : begin + size]
    return found + list(ids[: wanted - len(found)])
