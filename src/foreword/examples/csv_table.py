"""Tables: CSV with named columns, separated by comma, tab or semicolon."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence

from foreword.errors import UnknownField
from foreword.examples.records import Line, excerpt

SEPARATORS = (",", "\t", ";")  # semicolon: what spreadsheets write where the comma is a decimal sign


def read_rows(
    lines: Iterator[Line], required: list[str], parts: Sequence[str] = ("source", "target")
) -> Iterator[tuple[Line, dict[str, str]]]:
    """Rows as dictionaries, each with the line in which it begins.

    Args:
        required: names of columns.
        parts: what may have another name, for messages.

    Raises:
        BadExamples: wrong columns, or names the line where a row has more or fewer cells, or a quote is not
            closed.
    """
    header = next((line for line in lines if not line.blank), None)
    if header is None:
        return
    separator, columns = _columns(header, required, parts)
    place = header
    for place, cells in _split(lines, header, separator):
        if len(cells) != len(columns):
            raise place.fault(
                f"{len(cells)} cells; expected {len(columns)} ({', '.join(columns)}); "
                f"a text with {_NAMES[separator]} or a quote in it must stand in double quotes"
            )
        yield place, dict(zip(columns, cells, strict=True))
    if place is header:
        raise header.fault("the columns are named but no row follows; expected at least one example")


def find_columns(header: Line, required: list[str]) -> tuple[str, list[str]] | None:
    """Separator and column names, if `header` names all the `required` ones."""
    for separator in SEPARATORS:
        try:
            columns = next(csv.reader([header.text], delimiter=separator, strict=True), [])
        except csv.Error:
            continue
        columns = [column.strip() for column in columns]
        if all(name in columns for name in required):
            return separator, columns
    return None


_NAMES = {",": "a comma", "\t": "a tab", ";": "a semicolon"}


def _columns(header: Line, required: list[str], parts: Sequence[str]) -> tuple[str, list[str]]:
    table = find_columns(header, required)
    if table is None:
        raise UnknownField(
            f"{header.file}, line {header.number}: found {excerpt(header.text)}; expected a line that names "
            f"the columns {', '.join(required)}",
            *parts,
        )
    columns = table[1]
    if double := sorted({name for name in columns if name and columns.count(name) > 1}):
        raise header.fault(f"two columns are named {double[0]!r}; rename one of them")
    return table


def _split(lines: Iterator[Line], header: Line, separator: str) -> Iterator[tuple[Line, list[str]]]:
    """The cells of each row after the header; a row in quotes may span several lines."""
    rows = csv.reader((line.text + line.end for line in lines), delimiter=separator, strict=True)
    while True:
        begin = Line(header.file, header.number + rows.line_num + 1, "")
        try:
            cells = next(rows, None)
        except csv.Error as error:
            # The csv module says these in its own words only; its limit of a cell is 131,072 characters.
            endless = "end of data" in str(error) or "field limit" in str(error)
            raise begin.fault(
                "the row that begins here has a double quote that is never closed, or a text of more than "
                f"{csv.field_size_limit():,} characters; close the quote, or use JSON lines for long texts"
                if endless
                else f"not CSV: {error}; double the quotes inside a quoted text"
            ) from error
        if cells is None:
            return
        if cells and (len(cells) > 1 or cells[0].strip()):
            yield begin, cells
