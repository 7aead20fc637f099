"""Parquet files through pyarrow, and data sets through `datasets` (both an extra): each row as a record.

`datasets:tatsu-lab/alpaca`, `datasets:openai/gsm8k@main:test`: name, configuration, split. A folder is one
that `save_to_disk` wrote, or one of data files that `load_dataset` reads. No code of a data set is run.

Where the rows of a column are objects with different fields, Arrow gives all of them to each, empty where a
row had none; such empty fields are left out again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, BinaryIO

from foreword.errors import BadExamples, CannotRead, DownloadFailed
from foreword.examples.records import Line

NAMED = "datasets:"
"""What the name of a data set begins with, where a path is expected."""
SPLIT = "train"
ROWS_AT_ONCE = 1000


def read_parquet(
    stream: BinaryIO, file: str, *, most_rows: int | None = None, most_bytes: int | None = None
) -> Iterator[tuple[Line, dict[str, Any]]]:
    """Every row with its place, numbered from 1.

    Args:
        most_rows, most_bytes: of a stranger's file, whose few bytes may unpack to any number; the bytes are
            those that it says itself.

    Raises:
        BadExamples: the file is damaged or larger than that, or pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise BadExamples(
            f"{file} is a Parquet file, and the package pyarrow, which reads it, is not installed here",
            advice="install it: pip install 'foreword[data]', or write the examples as JSON lines",
            remedy="no pyarrow",
        ) from error
    number = 0
    try:
        opened = parquet.ParquetFile(stream)
        facts = opened.metadata
        size = sum(facts.row_group(group).total_byte_size for group in range(facts.num_row_groups))
        if (most_rows or facts.num_rows) < facts.num_rows or (most_bytes or size) < size:
            raise BadExamples(
                f"{file} has {facts.num_rows:,} rows of {size:,} bytes in all; expected at most "
                f"{most_rows:,} rows and {most_bytes:,} bytes. Make several files of it"
            )
        for batch in opened.iter_batches(ROWS_AT_ONCE, use_threads=False):
            for row in batch.to_pylist():
                number += 1
                yield Line(file, number, "", unit="row"), {name: _full(value) for name, value in row.items()}
    except (pyarrow.ArrowException, OSError) as error:
        where = f"{file}, behind row {number}" if number else file
        raise BadExamples(
            f"{where}: the Parquet file can't be read: {error}; get or write it again"
        ) from error


def _full(value: Any) -> Any:
    """A value without the empty fields of objects in it."""
    if isinstance(value, dict):
        return {name: _full(one) for name, one in value.items() if one is not None}
    return [_full(one) for one in value] if isinstance(value, list) else value


def read_named(given: str) -> Iterator[tuple[Line, dict[str, Any]]]:
    """Every row of a data set with its place, numbered from 1.

    Args:
        given: a folder, or NAMED with name and, if need be, configuration and split.

    Raises:
        CannotRead: the package is not installed, or a folder holds no data set.
        DownloadFailed: there is no such data set, configuration or split, or no network.
    """
    folder = not given.startswith(NAMED)
    name, _, split = given.removeprefix(NAMED).partition(":")
    name, _, configuration = name.partition("@")
    if folder:
        name, configuration, split = given, "", SPLIT
    try:
        import datasets  # type: ignore[import]
    except ImportError as error:
        what = "is a folder" if folder else "is a data set by name"
        raise CannotRead(
            f"{given} {what}, and the package datasets, which reads it, is not installed here",
            advice="give the name of one file of examples, or install it: pip install 'foreword[data]'",
            remedy="no datasets",
        ) from error
    try:
        rows = _loaded(datasets, name, configuration or None, split or SPLIT)
    except Exception as error:  # of many packages, each with errors of its own
        told = f"{type(error).__name__}: {error}"
        if folder:
            raise CannotRead(
                f"{given} is a folder in which datasets finds no data set ({told}); give the name of one "
                "file of examples"
            ) from error
        raise DownloadFailed(
            f"datasets could not deliver {name} ({split or SPLIT}): {told}; check name, configuration and "
            f"split, as in {NAMED}NAME@CONFIGURATION:SPLIT"
        ) from error
    if not isinstance(rows, datasets.Dataset):
        raise BadExamples(f"{given} holds several splits, {', '.join(map(str, rows))}; give one of them")
    for number, row in enumerate(rows, 1):
        yield Line(given, number, "", unit="row"), {name: _full(value) for name, value in row.items()}


def _loaded(datasets: Any, name: str, configuration: str | None, split: str) -> Any:
    if not os.path.isdir(name):
        return datasets.load_dataset(name, configuration, split=split)
    if any(os.path.exists(os.path.join(name, mark)) for mark in ("state.json", "dataset_dict.json")):
        found = datasets.load_from_disk(name)
        return found[split] if isinstance(found, datasets.DatasetDict) else found
    return datasets.load_dataset(name, configuration, split=split)
