"""Task data by name: through the `datasets` package, where a hub answers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from foreword.errors import BadExamples, DownloadFailed, UsageError
from foreword.evaluation.task_data import entry_of_record
from foreword.evaluation.tasks import Task
from foreword.examples.e2e import linearise
from foreword.examples.entry import Entry, entries_of, examples_of
from foreword.examples.records import Line
from foreword.examples.triples import Triple, dart_source, webnlg_source

Record = dict[str, Any]


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
    entries = _entries(task, _records(task, task.hub.splits[split]), split)
    if not entries:
        raise BadExamples(f"{task.hub.repository} gave no entry for {split}; expected data of {task.title}")
    return entries[:limit]


def _records(task: Task, split: str) -> Iterable[Record]:
    by_path = f"get the official files and give their path ({task.title})"
    try:
        from datasets import load_dataset  # type: ignore[import]
    except ImportError as error:
        raise DownloadFailed(
            f"reading {task.name} by name needs the package datasets ({error}); "
            f"install it: pip install 'foreword[eval]' datasets; or {by_path}"
        ) from error
    asked = (task.hub.repository, *([task.hub.configuration] if task.hub.configuration else []))
    try:
        return load_dataset(*asked, split=split)  # type: ignore[no-any-return]
    except Exception as error:  # the package raises whatever its file systems do
        offline = "; HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise DownloadFailed(
            f"datasets could not deliver {' '.join(asked)} ({split}): {type(error).__name__}: {error}"
            f"{offline}; make the hub answer, or {by_path}"
        ) from error


def _entries(task: Task, records: Iterable[Record], split: str) -> list[Entry]:
    layouts: Mapping[str, Callable[[Line, Record], Entry | None]] = {
        "e2e": _e2e,
        "webnlg": _webnlg,
        "dart": _dart,
        "records": lambda line, record: entry_of_record(task, line, record),
    }
    read = layouts[task.layout]
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
    return Entry(example.source, (example.target,))


def _webnlg(line: Line, record: Record) -> Entry | None:
    triples = [_triple(line, text) for text in record["modified_triple_sets"]["mtriple_set"][0]]
    texts = record["lex"]
    pairs = [
        (text.strip(), comment)
        for text, comment in zip(texts["text"], texts["comment"], strict=True)
        if text.strip()
    ]
    if not pairs:
        return None
    bad = tuple(text for text, comment in pairs if comment not in ("good", ""))
    return Entry(webnlg_source(triples), tuple(text for text, _ in pairs), record["category"], None, bad)


def _dart(line: Line, record: Record) -> Entry | None:
    triples: list[Triple] = [(triple[0], triple[1], triple[2]) for triple in record["tripleset"]]
    texts = tuple(text.strip() for text in record["annotations"]["text"] if text.strip())
    return Entry(dart_source(triples), texts) if texts else None


def _triple(line: Line, text: str) -> Triple:
    parts = text.split(" | ")
    if len(parts) != 3:
        raise line.fault(f"mtriple is {text!r}; expected subject | property | object")
    return parts[0].strip(), parts[1].strip(), parts[2].strip()
