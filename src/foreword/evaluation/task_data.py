"""Entries of a task: from its official files by path, or by name through the `datasets` package.

A file of another task is refused, with the name of the task that it looks like.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from foreword.errors import BadExamples, DownloadFailed, UsageError
from foreword.evaluation.tasks import TASKS, Task
from foreword.examples.csv_table import find_columns
from foreword.examples.e2e import BETWEEN, COLUMNS, linearise
from foreword.examples.example import Entry, Example, entries_of, examples_of, kind, text_of
from foreword.examples.jsonl import object_or_none, parse_objects
from foreword.examples.readers import read_examples
from foreword.examples.records import Line, excerpt, read_lines
from foreword.examples.triples import (
    GOOD,
    Triple,
    dart_source,
    first_text,
    make_entry,
    read_dart,
    read_webnlg,
    split_triple,
    webnlg_source,
)

One = TypeVar("One", Entry, Example)
Record = dict[str, Any]

EXPECTED = {
    "e2e": "CSV with the columns mr and ref, or source||target lines",
    "webnlg": "XML with <entry>, <mtriple> and <lex>, or a folder of such files",
    "dart": "a JSON list of objects with tripleset and annotations, or XML with <mtriple> and <lex>",
}

_COMMENT = re.compile(r'<lex [^>]*comment="([^"]*)"')


def read_task(task: Task, path: str | os.PathLike[str], *, limit: int | None = None) -> list[Entry]:
    """The entries of the official file at `path` (WebNLG, DART: or of a folder of XML files).

    Args:
        limit: the first so many entries only.

    Raises:
        CannotRead: absent, or not to be opened.
        BadExamples: a fault in the data, or data of another task; says which it looks like.
        UsageError: a limit below 1.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}; expected 1 or more, or None for all entries")
    _refuse_other_tasks(task, path)
    if task.layout == "e2e":
        entries = entries_of(read_examples(path, format="e2e"))
    elif task.layout == "webnlg":
        entries = read_webnlg(path)
    elif task.layout == "dart":
        entries = read_dart(path)
    else:
        entries = [entry_of_record(task, *each) for each in parse_objects(read_lines(path))]
    if not entries:
        raise BadExamples(f"{os.fspath(path)} is empty; expected data of {task.title}")
    return entries[:limit]


def entry_of_record(task: Task, line: Line, record: dict[str, Any]) -> Entry:
    """One record of a summarisation task.

    Raises:
        BadExamples: fields that the task does not have, fields of another task, or a value of another kind.
    """
    names = next((pair for pair in task.fields if set(pair) <= set(record)), None)
    listed = ", ".join(map(repr, list(record)[:12])) or "none"
    if names is None:
        expected = " or ".join(" and ".join(pair) for pair in task.fields)
        raise line.fault(f"found the fields {listed}; {task.title} has {expected}{_hint(task, record)}")
    # A task's own names settle it. Source and target are any task's: what stands beside them may tell.
    other = _task_of_record(record) if names != task.fields[0] else None
    if other is not None and other != task.name:
        raise line.fault(
            f"found the fields {listed}, as {TASKS[other].title} has them; {task.title} has "
            f"{' and '.join(task.fields[0])}; give the task {other}, a file of {task.title}, or read yours "
            "without a task (fields can be named there)"
        )
    source, target = record[names[0]], record[names[1]]
    if task.source_is_list != isinstance(source, list):
        expected = "a list of sentences" if task.source_is_list else "text"
        raise line.fault(
            f"field {names[0]!r} is {kind(source)}; {task.title} has {expected} there{_hint(task, record)}"
        )
    if isinstance(source, list) and all(isinstance(sentence, str) for sentence in source):
        source = " ".join(source)
    targets = target if isinstance(target, list) else [target]
    owner = record.get(task.owner_field) if task.owner_field is not None else None
    examples = [line.example(source, one, None if owner is None else str(owner)) for one in targets]
    if not examples:
        raise line.fault(f"field {names[1]!r} is an empty list; expected at least one text")
    return Entry(examples[0].source, tuple(map(text_of, examples)), owner=examples[0].owner)


def check_categories(names: Collection[str], entries: Sequence[Entry]) -> None:
    """Refuse names that no entry has: a typing error would make a part silently empty.

    Raises:
        UsageError: names the category, and those that there are.
    """
    there = {entry.category for entry in entries}
    if unknown := sorted(set(names) - there):
        known = ", ".join(sorted(name for name in there if name is not None)) or "none at all"
        raise UsageError(f"no entry has the category {unknown[0]!r}; the data has {known}")


def without_categories(entries: Sequence[Entry], held_out: Sequence[str]) -> tuple[list[Entry], list[Entry]]:
    """Entries of all other categories, and those of `held_out`: to train without some and test on them.

    Raises:
        UsageError: a category that no entry has.
    """
    check_categories(held_out, entries)
    chosen = set(held_out)
    return (
        [entry for entry in entries if entry.category not in chosen],
        [entry for entry in entries if entry.category in chosen],
    )


def cut_sources(data: Sequence[One], tokenizer: Any, tokens: int) -> tuple[list[One], int]:
    """Entries or examples with sources cut at `tokens` tokens of the tokenizer, and how many were cut."""
    cut = []
    number = 0
    for one in data:
        if isinstance(one.source, str):
            ids = tokenizer(one.source, add_special_tokens=False)["input_ids"]
            if len(ids) > tokens:
                text = tokenizer.decode(ids[:tokens], skip_special_tokens=False)
                one, number = replace(one, source=text.rstrip("\ufffd")), number + 1
        cut.append(one)
    return cut, number


def looks_like(path: str | os.PathLike[str]) -> str | None:
    """Name of the task whose official files begin as this one does, or None.

    Raises:
        CannotRead, BadExamples: the file is absent, can't be opened, or holds no text.
    """
    if Path(path).is_dir():
        return None
    start = first_text(path)
    if start.startswith("<"):
        return _task_of_xml("".join(line.text for line in itertools.islice(read_lines(path), 60)))
    if start.startswith("["):
        return "dart"
    if start.startswith("{"):
        record = object_or_none(start)
        return None if record is None else _task_of_record(record)
    if find_columns(Line(os.fspath(path), 1, start), COLUMNS) or BETWEEN in start:
        return "e2e"
    return None


def _refuse_other_tasks(task: Task, path: str | os.PathLike[str]) -> None:
    """Layouts differ between these tasks; records are told apart by their fields, record by record."""
    looks = looks_like(path)
    if looks is None or TASKS[looks].layout == task.layout:
        return
    names = " and ".join(task.fields[0]) if task.fields else ""
    expected = EXPECTED.get(task.layout, f"JSON lines with {names}")
    raise BadExamples(
        f"{os.fspath(path)} begins with {excerpt(first_text(path))}, as data of {TASKS[looks].title} does; "
        f"{task.title} has {expected}; give the task {looks}, or a file of {task.title}"
    )


def _task_of_xml(head: str) -> str | None:
    """WebNLG and DART have one form. WebNLG's comments judge a text, DART's say where it is from."""
    if "<entry" not in head:
        return None
    comments = set(_COMMENT.findall(head))
    if "<originaltripleset" in head or comments & {GOOD, "toFix"}:
        return "webnlg"
    return "dart" if comments - {""} else None


def _task_of_record(record: dict[str, Any]) -> str | None:
    for task in TASKS.values():
        names = task.fields[0] if task.fields else ()
        if names and set(names) <= set(record) and task.source_is_list == isinstance(record[names[0]], list):
            return task.name
    if {"source", "target"} <= set(record) and "user" in record:
        return "aeslc"
    return None


def _hint(task: Task, record: dict[str, Any]) -> str:
    other = _task_of_record(record)
    if other is None or other == task.name:
        return "; give a file of this task, or read yours without a task (fields can be named there)"
    return f"; this looks like {TASKS[other].title}: give the task {other}"


def fetch_task(task: Task, split: str, *, limit: int | None = None) -> list[Entry]:
    """The entries of a split (`train`, `dev`, `test`), from the Hugging Face Hub or its cache.

    Raises:
        UsageError: a split that the task does not have, or a limit below 1.
        DownloadFailed: `datasets` is not installed, or could not deliver: says what it answered.
        BadExamples: the data is not what the task expects.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}; expected 1 or more, or None for all entries")
    if split not in task.hub.splits:
        raise UsageError(f"{task.title} has no split {split!r}; expected {', '.join(task.hub.splits)}")
    entries = _entries(task, _task_hub_records(task, task.hub.splits[split]), split)
    if not entries:
        raise BadExamples(f"{task.hub.repository} gave no entry for {split}; expected data of {task.title}")
    return entries[:limit]


def _task_hub_records(task: Task, split: str) -> Iterable[Record]:
    by_path = f"get the official files and give their path ({task.title})"
    try:
        from datasets import load_dataset  # type: ignore[import]
    except ImportError as error:
        raise DownloadFailed(
            f"reading {task.name} by name needs the package datasets ({error}); "
            f"install it: pip install 'foreword[eval]' datasets; or {by_path}"
        ) from error
    names = (task.hub.repository, *([task.hub.configuration] if task.hub.configuration else []))
    try:
        return load_dataset(*names, split=split)  # type: ignore[no-any-return]
    except Exception as error:  # the package raises whatever its file systems do
        offline = "; HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise DownloadFailed(
            f"datasets could not deliver {' '.join(names)} ({split}): {type(error).__name__}: {error}"
            f"{offline}; make the hub answer, or {by_path}"
        ) from error


def _entries(task: Task, records: Iterable[Record], split: str) -> list[Entry]:
    layouts: Mapping[str, Callable[[Line, Record], Entry | None]] = {
        "e2e": _e2e,
        "webnlg": _webnlg,
        "dart": _dart,
    }
    read = layouts.get(task.layout, functools.partial(entry_of_record, task))
    entries = []
    for number, record in enumerate(records, 1):
        line = Line(f"{task.hub.repository} ({split})", number, "")
        try:
            entry = read(line, record)
        except (KeyError, TypeError, IndexError, ValueError) as error:
            if isinstance(error, UsageError):
                raise
            raise line.fault(
                f"found the fields {', '.join(map(repr, record))}, not laid out as {task.title} is expected "
                f"({type(error).__name__}: {error}); get the official files and give their path"
            ) from error
        if entry is not None:
            entries.append(entry)
    # The hub has a row for each reference of E2E.
    return entries_of(examples_of(entries)) if task.layout == "e2e" else entries


def _e2e(line: Line, record: Record) -> Entry:
    example = line.example(
        linearise(line, record["meaning_representation"]), record["human_reference"].strip(), None
    )
    return Entry(example.source, (text_of(example),))


def _webnlg(line: Line, record: Record) -> Entry | None:
    try:
        triples = list(map(split_triple, record["modified_triple_sets"]["mtriple_set"][0]))
    except BadExamples as error:
        raise line.fault(str(error)) from error
    texts = zip(record["lex"]["text"], record["lex"]["comment"], strict=True)
    return make_entry(webnlg_source(triples), texts, record["category"], judged=True)


def _dart(line: Line, record: Record) -> Entry | None:
    triples: list[Triple] = [(triple[0], triple[1], triple[2]) for triple in record["tripleset"]]
    return make_entry(dart_source(triples), ((text, "") for text in record["annotations"]["text"]))
