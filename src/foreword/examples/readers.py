"""Reading a file of examples in whichever format it is."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from typing import Literal, get_args

from foreword.errors import BadExamples, UsageError
from foreword.examples.chat import read_chat
from foreword.examples.csv_table import find_columns, read_table
from foreword.examples.e2e import BETWEEN, COLUMNS, read_e2e
from foreword.examples.example import Example
from foreword.examples.jsonl import object_or_none, read_jsonl
from foreword.examples.preferences import refuse_preference
from foreword.examples.records import Fields, Line, excerpt, make_fields, read_lines

Format = Literal["auto", "jsonl", "csv", "e2e", "chat"]
Reader = Callable[[Iterator[Line], Fields], Iterator[Example]]

_READERS: dict[str, Reader] = {"jsonl": read_jsonl, "csv": read_table, "e2e": read_e2e, "chat": read_chat}
_PARTS: dict[str, set[str]] = {
    "jsonl": {"source", "target", "owner"},
    "csv": {"source", "target", "owner"},
    "e2e": set(),
    "chat": {"messages", "owner"},
}
_BY_ENDING = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "csv"}


def read_examples(
    path: str | os.PathLike[str],
    *,
    format: Format = "auto",
    fields: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> list[Example]:
    """The examples of one file, in their order.

    Args:
        path: UTF-8 text, with or without byte-order mark, lines ended by LF or CRLF.
        format: `jsonl`, `csv`, `e2e` or `chat`; `auto` tells it from the first line.
        fields: names of your fields or columns where they differ, for instance
            `{"source": "body", "target": "subject", "owner": "user"}`.
        limit: stop after that many examples; what follows in the file is not looked at.

    Raises:
        CannotRead: the file is absent, a folder, or can't be opened.
        BadExamples: the data has a fault; names file, line, what was found, expected and to do.
        UsageError: an unknown format, fields that the format does not have, a limit below 1.
    """
    if format not in get_args(Format):
        raise UsageError(f"format is {format!r}; expected {', '.join(get_args(Format))}")
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}; expected 1 or more, or None for all examples")
    file = os.fspath(path)
    ending = PurePath(file).suffix.lower()
    return list(iterate_examples(read_lines(path), file, ending, format=format, fields=fields, limit=limit))


def iterate_examples(
    lines: Iterator[Line],
    file: str,
    ending: str,
    *,
    format: Format = "auto",
    fields: Mapping[str, str] | None = None,
    limit: int | None = None,
    owner_needed: bool = True,
) -> Iterator[Example]:
    """As `read_examples`, one at a time, so that memory does not grow with the file.

    Args:
        file: what messages call the source of the lines.
        ending: of its name, which may tell the format.
        owner_needed: each example has an owner where `fields` names one.
    """
    names = make_fields(fields)
    if not owner_needed:
        names = dataclasses.replace(names, owner_named=False)
    name: str = format
    if format == "auto":
        name, lines = _detect(lines, names, ending, mapped=bool(fields))
    if wrong := sorted(set(fields or ()) - _PARTS[name]):
        takes = ", ".join(sorted(_PARTS[name])) or "no fields at all"
        raise UsageError(f"fields names {wrong[0]!r}, but the format {name} takes {takes}")
    found = False
    for example in itertools.islice(_READERS[name](lines, names), limit):
        found = True
        yield example
    if not found:
        raise BadExamples(f"{file} is empty; expected at least one example")


def _detect(
    lines: Iterator[Line], fields: Fields, ending: str, *, mapped: bool
) -> tuple[str, Iterator[Line]]:
    """The format by the first line that is not blank, and all lines, that one included."""
    seen: list[Line] = []
    for line in lines:
        seen.append(line)
        if not line.blank:
            return _format_of(line, fields, ending, mapped=mapped), itertools.chain(seen, lines)
        if len(seen) > 1:
            seen.pop(0)  # white space without end must not fill the memory
    return "jsonl", iter(())


def _format_of(line: Line, fields: Fields, ending: str, *, mapped: bool) -> str:
    if line.text.lstrip().startswith(("{", "[")):
        record = object_or_none(line.text) or {}
        if fields.source not in record and fields.messages not in record:
            refuse_preference(line)
        plain = fields.source in record and fields.target in record
        return "chat" if fields.messages in record and not plain else "jsonl"
    if not mapped and find_columns(line, COLUMNS):
        return "e2e"
    if find_columns(line, [fields.source, fields.target]):
        return "csv"
    if not mapped and BETWEEN in line.text:
        return "e2e"
    # The content says nothing; if the ending does, that format's reader knows best what is wrong.
    if ending in _BY_ENDING:
        return _BY_ENDING[ending]
    raise line.fault(
        f"can't tell the format from {excerpt(line.text)}; expected a JSON object with "
        f"{fields.source} and {fields.target} (jsonl) or {fields.messages} (chat), a line that names the "
        f"columns {fields.source} and {fields.target} (csv) or mr and ref (e2e), or source{BETWEEN}target "
        "(e2e)",
        advice="if it is one of these, pass its name as format",
        remedy="format not told",
    )
