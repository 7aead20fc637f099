"""JSON: an object a line, or one array of objects; and records with source and target, whatever held them."""

from __future__ import annotations

import bisect
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from foreword.errors import BadExamples
from foreword.examples.example import Example, kind
from foreword.examples.records import Fields, Line, excerpt, missing_field

_SPACE = re.compile(r"[ \t\r\n]*")


def read_source_target(line: Line, record: dict[str, Any], fields: Fields) -> Iterator[Example]:
    """Examples of an object, or the row of a table, with source and target.

    A source that is a list of texts (sentences) is joined by spaces. A target that is a list of
    texts holds several references: an example each.

    Raises:
        BadExamples: names the line that lacks a field, or holds no text there.
    """
    source = " ".join(_texts(line, record, "source", fields.source))
    owner = read_owner(line, record, fields)
    for target in _texts(line, record, "target", fields.target):
        yield line.example(source, target, owner)


def parse_objects(lines: Iterable[Line]) -> Iterator[tuple[Line, dict[str, Any]]]:
    """Each line that is not blank, with the JSON object that stands in it.

    Raises:
        BadExamples: a line is not JSON, or JSON of another kind.
    """
    for line in lines:
        if not line.blank:
            yield line, parse_object(line)


def parse_object(line: Line) -> dict[str, Any]:
    """The JSON object that stands in `line`; raises as `parse_objects`."""
    try:
        value = json.loads(line.text)
    except json.JSONDecodeError as error:
        raise line.fault(
            f"not JSON: {error.msg} at column {error.colno}, in {excerpt(line.text)}; "
            f"expected one whole object a line{_hint(line)}"
        ) from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits; nesting without end
        raise line.fault(f"not JSON that can be read: {error}") from error
    if not isinstance(value, dict):
        raise line.fault(f"found {kind(value)}; expected a JSON object{_hint(line)}")
    return value


def parse_whole(lines: Iterable[Line]) -> Iterator[tuple[Line, dict[str, Any]]]:
    """Each object of one JSON array, or of objects that span several lines, with the line in which it begins.
    The whole is held in memory as text.

    Raises:
        BadExamples: names the line that is not JSON, an item that is no object, and what follows the array.
    """
    lines = list(lines)
    begins = list(itertools.accumulate((len(line.text) + 1 for line in lines), initial=0))
    text = "\n".join(line.text for line in lines)

    def line_at(place: int) -> Line:
        return lines[min(bisect.bisect_right(begins, place), len(lines)) - 1]

    def broken(message: str, place: int) -> BadExamples:
        line = line_at(place)
        column = place - begins[bisect.bisect_right(begins, place) - 1] + 1
        return line.fault(
            f"not JSON: {message} at column {column}, in {excerpt(line.text)}; expected one JSON array of "
            "objects, or one whole object a line"
        )

    decode = json.JSONDecoder().raw_decode
    place = _space(text, 0)
    array = text[place] == "["
    if array:
        place = _space(text, place + 1)
    while place < len(text) and not (array and text[place] == "]"):
        begin = line_at(place)
        try:
            value, place = decode(text, place)
        except json.JSONDecodeError as error:
            raise broken(error.msg, error.pos) from error
        except (ValueError, RecursionError) as error:  # numbers of thousands of digits; nesting without end
            raise begin.fault(f"not JSON that can be read: {error}") from error
        if not isinstance(value, dict):
            raise begin.fault(f"found {kind(value)}; expected a JSON object")
        yield begin, value
        place = _space(text, place)
        if array and text[place : place + 1] == ",":
            place = _space(text, place + 1)
        elif array and text[place : place + 1] != "]":
            raise broken("Expecting ',' or ']'", place)
    if array and place >= len(text):
        raise broken("Expecting ']'", place)
    if array and (place := _space(text, place + 1)) < len(text):
        raise line_at(place).fault(
            f"found {excerpt(text[place : place + 80])} behind the JSON array; expected one array, or one "
            "object a line"
        )


def _space(text: str, place: int) -> int:
    """Where the white space that begins at `place` ends."""
    found = _SPACE.match(text, place)
    return place if found is None else found.end()


def json_or_none(text: str) -> Any:
    """What `text` is as JSON; None for everything else, which the reader in charge reports."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def object_or_none(text: str) -> dict[str, Any] | None:
    """As `json_or_none`, of objects alone."""
    value = json_or_none(text)
    return value if isinstance(value, dict) else None


def read_owner(line: Line, record: dict[str, Any], fields: Fields) -> str | None:
    """The owner that `record` names, or None.

    Raises:
        BadExamples: not a name, or absent or null although the user said which field it is in.
    """
    if fields.owner not in record:
        if fields.owner_named:
            raise missing_field(line, "owner", fields.owner, record)
        return None
    owner = record[fields.owner]
    if isinstance(owner, int) and not isinstance(owner, bool):
        return str(owner)  # a user's number serves as a name
    if owner is None and not fields.owner_named:
        return None
    if not isinstance(owner, str):
        raise line.fault(f"field {fields.owner!r} is {kind(owner)}; expected the owner's name as text")
    return owner


def _texts(line: Line, record: dict[str, Any], part: str, name: str) -> list[str]:
    if name not in record:
        raise missing_field(line, part, name, record)
    value = record[name]
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return value
    if not isinstance(value, str):
        raise line.fault(f"field {name!r} is {_content(value)}; expected text or a list of texts")
    return [value]


def _content(value: object) -> str:
    if isinstance(value, list):
        other = next((item for item in value if not isinstance(item, str)), None)
        return f"a list with {kind(other)} in it" if value else "an empty list"
    return kind(value)


def _hint(line: Line) -> str:
    start = line.text.lstrip()
    if start.startswith("["):
        return "; this looks like a JSON array: write its items one a line (jq -c '.[]')"
    if line.number == 1 and start.rstrip() == "{":
        return "; this looks like JSON spread over several lines: write it one object a line (jq -c .)"
    return ""
