"""Lines of a PDF's pages put together to headings and paragraphs.

A PDF says where letters stand, not what they are. Headings are told by their size, paragraphs by lines that
end early; what stands at the edge of most pages, such as a running title or the page's number, is left out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

HEADING_SIZE = 1.12
"""How much larger than most of the text a heading is, at least."""
LONGEST_HEADING = 160  # characters
MOST_HEADINGS = 0.3
"""Share of the lines; where more look like headings, the sizes of letters say nothing."""
LEVELS = 4
FULL_LINE = 0.8
"""A line that is shorter than this share of the usual one ends a paragraph if it ends a sentence."""
FEW_PAGES = 3
"""From so many on, a line at the edge of most pages belongs to none of them."""
DIVIDED = "\x1f"
"""Stands behind the hyphen of a word that two lines divide."""

_ITEM = re.compile(r"(?:[•‣▪●○–*·-]|(\(?\d{1,3}[.)]|\(?[a-z][.)]))\s+(?=\S)")
_SENTENCE_END = re.compile(r"[.!?:;…][\"'”’)\]]*$")


@dataclass(frozen=True)
class Line:
    """A line of a page, and the height of most of its letters."""

    text: str
    size: float


def lines_of(pieces: Iterable[tuple[str, float]]) -> list[Line]:
    """The lines of a page, of its pieces of text with their sizes in the order of the page."""
    lines: list[Line] = []
    text: list[str] = []
    sizes: Counter[float] = Counter()

    def end_line() -> None:
        if whole := " ".join("".join(text).split()):
            lines.append(Line(whole, max(sizes, key=sizes.__getitem__) if sizes else 0.0))
        text.clear()
        sizes.clear()

    for piece, size in pieces:
        first, *others = piece.split("\n")
        for number, part in enumerate((first, *others)):
            if number:
                end_line()
            text.append(part)
            if letters := len(part.strip()):
                sizes[round(size * 2) / 2] += letters
    end_line()
    return lines


def text_of_pages(pages: Sequence[list[Line]]) -> str:
    """The text of a document, a paragraph a line, empty lines between paragraphs."""
    lines = [line for page in _without_edges(pages) for line in page]
    levels = _levels(lines)
    lengths = sorted(len(line.text) for line in lines if line.size not in levels)
    usual = lengths[len(lengths) * 9 // 10] if lengths else 0
    parts: list[str] = []
    before: Line | None = None
    for line in lines:
        level = _level(line, levels)
        if level and before is not None and before.size == line.size:
            parts.append(f" {line.text}")  # a heading of two lines
        elif level:
            parts.append(f"\n\n{'#' * level} {line.text}")
        elif (item := _ITEM.match(line.text)) is not None:
            mark = item[1] or "-"
            parts.append(f"\n{mark} {line.text[item.end() :]}")
        elif before is None or _level(before, levels):
            parts.append(f"\n\n{line.text}")
        else:
            parts.append(_joined(before.text, line.text, usual))
        before = line
    return "".join(parts).replace(f"-{DIVIDED}", "")


def _joined(before: str, text: str, usual: int) -> str:
    """A line behind another, with what divides the two."""
    if re.search(r"[^\W\d_]-$", before) and text[:1].islower():
        return f"{DIVIDED}{text}"
    early = len(before) < FULL_LINE * usual
    if early and _SENTENCE_END.search(before):
        return f"\n\n{text}"
    if early and len(before) < FULL_LINE**2 * usual:
        return f"\n{text}"  # a row of a table, an address, a verse
    return f" {text}"


def _without_edges(pages: Sequence[list[Line]]) -> list[list[Line]]:
    """The pages without first and last lines that stand on most of them, numbers aside."""

    def key(line: Line) -> str:
        return re.sub(r"\d+", "0", line.text)

    left = [list(page) for page in pages]
    if len(pages) < FEW_PAGES:
        return left
    for edge in (0, -1):
        for _ in range(2):  # a running title may have two lines
            seen = Counter(key(page[edge]) for page in left if page)
            common = {name for name, times in seen.items() if times * 2 > len(pages)}
            if not common:
                break
            for page in left:
                if page and key(page[edge]) in common:
                    del page[edge]
    return left


def _levels(lines: Sequence[Line]) -> dict[float, int]:
    """The level of headings by their size; none where too much of the document would be one."""
    letters: Counter[float] = Counter()
    for line in lines:
        letters[line.size] += len(line.text)
    if not letters:
        return {}
    usual = max(letters, key=letters.__getitem__)
    larger = sorted((size for size in letters if size >= HEADING_SIZE * usual > 0), reverse=True)
    levels = {size: min(place, LEVELS) for place, size in enumerate(larger, 1)}
    headings = sum(_level(line, levels) > 0 for line in lines)
    return levels if headings <= MOST_HEADINGS * len(lines) else {}


def _level(line: Line, levels: dict[float, int]) -> int:
    fits = len(line.text) <= LONGEST_HEADING and any(letter.isalpha() for letter in line.text)
    return levels.get(line.size, 0) if fits else 0
