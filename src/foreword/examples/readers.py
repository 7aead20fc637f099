"""Reading a file of examples: what holds them (JSON, a table, Parquet), and which form they have."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from typing import Any, Literal, get_args

from foreword.errors import BadExamples, UsageError
from foreword.examples import csv_table
from foreword.examples.data_sets import NAMED, read_named, read_parquet
from foreword.examples.e2e import BETWEEN, COLUMNS, read_e2e
from foreword.examples.example import Example, Preference
from foreword.examples.forms import (
    FORMS,
    PREFERENCES,
    Form,
    Learned,
    candidates,
    form_of,
    unknown_form,
)
from foreword.examples.jsonl import parse_objects, parse_whole
from foreword.examples.preferences import no_preference, refuse_preference
from foreword.examples.records import PARQUET, Fields, Line, excerpt, lines_of, make_fields, opened

Format = Literal["auto", "jsonl", "csv", "e2e", "chat", "prompt", "alpaca", "sharegpt"]
Records = Iterator[tuple[Line, dict[str, Any]]]

_TABLE_ENDINGS = (".csv", ".tsv")
_JSON_ENDINGS = (".jsonl", ".ndjson", ".json")


@dataclasses.dataclass
class Summary:
    """What has been read of a file.

    Attributes:
        form: title of the form.
        examples, records: the second are conversations, for instance, that may hold several examples each.
        repeated: examples that are equal to one before them.
        noun: what they are.
    """

    form: str = ""
    examples: int = 0
    records: int = 0
    repeated: int = 0
    noun: str = "example"
    _seen: set[int] = dataclasses.field(default_factory=set, repr=False)

    def count(self, example: Example | Preference) -> None:
        """Take one more example."""
        self.examples += 1
        known = len(self._seen)
        self._seen.add(hash(json.dumps(example.content)))
        self.repeated += known == len(self._seen)

    def __str__(self) -> str:
        examples = f"{self.examples:,} {self.noun}{'s' * (self.examples != 1)}"
        if self.records != self.examples:
            examples += f" of {self.records:,} record{'s' * (self.records != 1)}"
        told = f"{examples}: {self.form}"
        if self.repeated == 1:
            return f"{told}; 1 repeats an earlier one, and is kept"
        return f"{told}; {self.repeated:,} repeat earlier ones, and are kept" if self.repeated else told


def read_examples(
    path: str | os.PathLike[str],
    *,
    format: Format = "auto",
    fields: Mapping[str, str] | None = None,
    limit: int | None = None,
    notify: Callable[[str], None] | None = None,
) -> list[Example]:
    """The examples of one file, in their order.

    Args:
        path: JSON lines, a JSON array or a table with named columns, all as UTF-8 text with or without
            byte-order mark; or Parquet. Or a data set of the package `datasets`: a folder of it, or
            `datasets:NAME[@CONFIGURATION][:SPLIT]`.
        format: the form of the examples: `jsonl` (source and target), `csv` (the same as a table), `e2e`,
            `chat`, `prompt`, `alpaca` or `sharegpt`; `auto` tells it from the first record.
        fields: names of your fields or columns where they differ, for instance
            `{"source": "body", "target": "subject", "owner": "user"}`.
        limit: stop after that many examples; what follows in the file is not looked at.
        notify: called with what was read, such as "read 310 examples: OpenAI chat messages".

    Raises:
        CannotRead: the file is absent, can't be opened, or needs a package that is not installed.
        BadExamples: the data has a fault; names file, line, what was found, expected and to do.
        DownloadFailed: `datasets` could not deliver the data set.
        UsageError: an unknown format, fields that the format does not have, a limit below 1.
    """
    if format not in get_args(Format):
        raise UsageError(f"format is {format!r}; expected {', '.join(get_args(Format))}")
    return _read(path, notify, format=format, fields=fields, limit=limit)


def read_preferences(
    path: str | os.PathLike[str],
    *,
    fields: Mapping[str, str] | None = None,
    limit: int | None = None,
    notify: Callable[[str], None] | None = None,
) -> list[Preference]:
    """The preferences of one file, in their order.

    Args:
        path: as of `read_examples`.
        fields: names of your fields where they differ, for instance
            `{"prompt": "question", "chosen": "good", "rejected": "bad", "owner": "user"}`.
        limit: stop after that many preferences; what follows in the file is not looked at.
        notify: called with what was read, such as "read 200 preferences: pairs of answers".

    Raises:
        CannotRead, BadExamples, DownloadFailed, UsageError: as `read_examples`.
    """
    return _read(path, notify, fields=fields, limit=limit, learned="preferences")


def _read(
    path: str | os.PathLike[str], notify: Callable[[str], None] | None, limit: int | None, **options: Any
) -> list[Any]:
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}; expected 1 or more, or None for all that the file holds")
    summary = Summary()
    found = list(iterate_path(path, limit=limit, summary=summary, **options))
    if notify is not None:
        notify(f"read {summary}")
    return found


def iterate_path(path: str | os.PathLike[str], **options: Any) -> Iterator[Any]:
    """As `read_examples`, one at a time; `options` as of `iterate_examples`."""
    file = os.fspath(path)
    if file.startswith(NAMED) or os.path.isdir(path):
        if options.get("format") == "e2e":
            raise BadExamples(f"{file}: format is e2e, but a data set is no such table; leave format out")
        yield from _examples(read_named(file), file, **options)
        return
    with opened(path) as stream:
        yield from iterate_examples(stream, file, PurePath(file).suffix.lower(), **options)


def iterate_examples(
    stream: io.BufferedReader,
    file: str,
    ending: str,
    *,
    format: Format = "auto",
    fields: Mapping[str, str] | None = None,
    learned: Learned = "examples",
    most_rows: int | None = None,
    most_bytes: int | None = None,
    **options: Any,
) -> Iterator[Any]:
    """As `read_examples` or `read_preferences`, one at a time, so that memory does not grow with the file.

    Args:
        learned: "preferences" for these instead of examples, "either" for whichever the file holds.
        file: what messages call it.
        ending: of its name, which may tell the format.
        most_rows, most_bytes: of a Parquet file, as `read_parquet` has them.
        options: `limit` of `read_examples`; `summary` to count in; `owner_needed`, False where an example may
            lack an owner although `fields` names one.
    """
    named = make_fields(fields)
    forms = candidates(format, fields or (), learned)
    options |= {"format": format, "fields": fields, "learned": learned}
    if stream.peek(len(PARQUET)).startswith(PARQUET) and format != "e2e":
        whole = stream if stream.seekable() else io.BytesIO(stream.read())
        yield from _examples(
            read_parquet(whole, file, most_rows=most_rows, most_bytes=most_bytes),
            file,
            what="columns",
            **options,
        )
        return
    lines = lines_of(stream, file)
    first = next((line for line in lines if not line.blank), None)
    if first is None:
        raise _empty(file, learned)
    rest = itertools.chain([first], lines)
    kind = _holder(first, named, ending, format, forms, e2e=not fields and learned != "preferences")
    if kind == "e2e":
        kept = {name: options[name] for name in ("limit", "summary", "owner_needed") if name in options}
        yield from _kept(read_e2e(rest, Fields()), file, title="the E2E challenge", **kept)
        return
    records = {"whole": parse_whole, "objects": parse_objects}.get(kind)
    if records is None:
        yield from _table(rest, first, file, forms, **options)
        return
    yield from _examples(records(rest), file, **options)


def _empty(file: str, learned: Learned) -> BadExamples:
    one = "preference" if learned == "preferences" else "example"
    return BadExamples(f"{file} is empty; expected at least one {one}")


def _holder(line: Line, fields: Fields, ending: str, format: str, forms: list[Form], *, e2e: bool) -> str:
    """What holds the records, by the first line that is not blank: `whole` is JSON over several lines,
    `objects` has one a line, and the others are tables and E2E's."""
    start = line.text.lstrip()
    if format in ("csv", "e2e"):
        return {"csv": "table"}.get(format, format)
    if start.startswith("[") or start.rstrip() == "{":
        return "whole"
    if start.startswith("{") or format in ("jsonl", "chat", "sharegpt"):
        return "objects"
    if format != "auto":
        return "table"
    if e2e and csv_table.find_columns(line, COLUMNS):
        return "e2e"
    if _table_form(line, (*FORMS, PREFERENCES), fields):
        return "table"
    if e2e and BETWEEN in line.text:
        return "e2e"
    # The content says nothing; if the ending does, that format's reader knows best what is wrong.
    if ending in _TABLE_ENDINGS + _JSON_ENDINGS:
        return "table" if ending in _TABLE_ENDINGS else "objects"
    known = "; ".join(f"{' and '.join(form.names(fields))} ({form.name})" for form in forms)
    raise line.fault(
        f"can't tell the format from {excerpt(line.text)}; expected JSON objects with {known}; a line that "
        f"names columns such as {' and '.join(forms[0].names(fields))}"
        + (f" (csv) or mr and ref (e2e); or source{BETWEEN}target (e2e)" if e2e else ""),
        advice="if it is one of these, pass its name as format",
        remedy="format not told",
    )


def _table_form(header: Line, forms: Any, fields: Fields) -> tuple[Form, Fields] | None:
    """The form that the columns of a table's first line tell."""
    for form in forms:
        for others in (False, True):
            there = dataclasses.replace(fields, **form.others) if others else fields
            if csv_table.find_columns(header, form.names(there)):
                return form, there
    return None


def _table(
    lines: Iterator[Line],
    header: Line,
    file: str,
    forms: list[Form],
    *,
    fields: Mapping[str, str] | None,
    format: str,
    **options: Any,
) -> Iterator[Any]:
    """The examples of a table whose first line is `header`."""
    named = make_fields(fields)
    known = [*forms, *FORMS, PREFERENCES] if format == "auto" else forms
    form, there = _table_form(header, known, named) or (forms[0], named)
    required = form.names(there)
    if named.owner_named and options.get("owner_needed", True):
        required.append(named.owner)
    records = csv_table.read_rows(lines, required, form.required)
    yield from _examples(records, file, fields=fields, format=format, **options)


def _examples(
    records: Records,
    file: str,
    *,
    format: str = "auto",
    fields: Mapping[str, str] | None = None,
    owner_needed: bool = True,
    learned: Learned = "examples",
    what: str = "fields",
    **options: Any,
) -> Iterator[Any]:
    """The examples, or preferences, of records, whose form is that of the first.

    Raises:
        BadExamples: a record in another form than the first, or in none.
    """
    forms, mapped = candidates(format, fields or (), learned), set(fields or ())
    first = next(records, None)
    if first is None:
        raise _empty(file, learned)
    names = dataclasses.replace(make_fields(fields), owner_named="owner" in mapped and owner_needed)
    found = form_of(first[1], forms, names, mapped)
    if learned == "preferences" and found is None:
        example = form_of(first[1], FORMS, Fields()) is not None
        raise no_preference(first[0], first[1], names, example=example)
    guessed = (learned, format) == ("examples", "auto") and mapped <= {"owner"}
    if guessed and (found is None or found[0].name not in ("jsonl", "chat")):
        refuse_preference(*first)
    if found is None and len(forms) > 1:
        raise unknown_form(first[0].place, first[1], what)
    form, there = found or (forms[0], names)
    summary = options.get("summary") or Summary()

    def read() -> Iterator[Example | Preference]:
        for line, record in itertools.chain([first], records):
            if record is not first[1] and any(name not in record for name in form.names(there)):
                other = form_of(record, (*FORMS, PREFERENCES), Fields())
                if other is not None and other[0] is not form:
                    raise line.fault(
                        f"found {other[0].title} ({', '.join(other[0].names(other[1]))}), but in "
                        f"{first[0].unit} {first[0].number} {form.title} ({', '.join(form.names(there))}); "
                        "expected one form in a file: make two files of it"
                    )
            summary.records += 1
            yield from form.read(line, record, there)

    summary.noun = "preference" if form is PREFERENCES else "example"
    yield from _kept(read(), file, title=form.title, **{**options, "summary": summary})


def _kept(
    examples: Iterator[Any],
    file: str,
    *,
    title: str,
    limit: int | None = None,
    summary: Summary | None = None,
    owner_needed: bool = True,
) -> Iterator[Any]:
    """The first `limit` examples, counted."""
    summary = summary or Summary()
    summary.form = title
    for example in itertools.islice(examples, limit):
        summary.count(example)
        yield example
    if not summary.examples:
        raise BadExamples(f"{file} is empty; expected at least one example")
    summary.records = summary.records or summary.examples
