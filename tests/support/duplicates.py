"""Runs of source lines that stand twice, whatever their names and values: `python tests/support/duplicates.py src`."""

from __future__ import annotations

import io
import keyword
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SKIPPED = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING,
    tokenize.ENDMARKER,
}  # fmt: skip
SHORTHAND = {tokenize.STRING: "''", tokenize.NUMBER: "0"}


@dataclass(frozen=True)
class Line:
    """One line of code: where it stands, and its tokens with every name, string and number alike."""

    path: Path
    number: int
    shape: str


@dataclass(frozen=True)
class Pair:
    """A run of lines that stands in two places: the first and the last line of each."""

    first: tuple[Line, Line]
    second: tuple[Line, Line]
    lines: int

    def __str__(self) -> str:
        def place(lines: tuple[Line, Line]) -> str:
            return f"{lines[0].path}:{lines[0].number}-{lines[1].number}"

        return f"{place(self.first)} ~ {place(self.second)} ({self.lines} lines)"


def code_lines(path: Path) -> list[Line]:
    """The lines of a file that hold code; imports, comments and the inside of long strings don't count."""
    shapes: dict[int, list[str]] = defaultdict(list)
    statement: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.NEWLINE:
            is_import = statement[0].string in ("import", "from")
            is_text = len(statement) == 1 and statement[0].type == tokenize.STRING
            for part in () if is_import or is_text else statement:
                shapes[part.start[0]].append(_shape(part))
            statement = []
        elif token.type not in SKIPPED:
            statement.append(token)
    return [Line(path, number, " ".join(shapes[number])) for number in sorted(shapes)]


def _shape(token: tokenize.TokenInfo) -> str:
    if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
        return "x"
    return SHORTHAND.get(token.type, token.string)


def duplicates(paths: Sequence[Path], least: int) -> list[Pair]:
    """Every two places that share `least` lines of code or more, the longest run first.

    A run of few shapes is a table of values, with the lines around it, and no copy.
    """
    places: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
    files = [code_lines(path) for path in paths]
    for file, lines in enumerate(files):
        shapes = [line.shape for line in lines]
        for start in range(len(shapes) - least + 1):
            window = tuple(shapes[start : start + least])
            if len(set(window)) > max(1, least // 4):
                places[window].append((file, start))
    pairs = []
    for (one, other, distance), starts in _by_distance(places, least).items():
        for first, last in _runs(sorted(starts)):
            count = last - first + least
            mine = files[one][first], files[one][first + count - 1]
            theirs = files[other][first + distance], files[other][first + distance + count - 1]
            pairs.append(Pair(mine, theirs, count))
    return sorted(pairs, key=lambda pair: (-pair.lines, str(pair)))


def _by_distance(
    places: dict[tuple[str, ...], list[tuple[int, int]]], least: int
) -> dict[tuple[int, int, int], list[int]]:
    """Starts in the first file of equal windows, by both files and the distance between the two starts."""
    found: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for where in places.values():
        for index, (one, start) in enumerate(where):
            for other, begin in where[index + 1 :]:
                if one != other or begin - start >= least:
                    found[one, other, begin - start].append(start)
    return found


def _runs(starts: list[int]) -> Iterator[tuple[int, int]]:
    """First and last of each run of consecutive numbers."""
    first = last = starts[0]
    for start in starts[1:]:
        if start != last + 1:
            yield first, last
            first = start
        last = start
    yield first, last


if __name__ == "__main__":
    for pair in duplicates(sorted(Path(sys.argv[1]).rglob("*.py")), int((sys.argv[2:] or ["13"])[0])):
        print(pair)
