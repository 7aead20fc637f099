"""How many chunks are new after a sentence was put in, part `chunks`: at each place between two sentences."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.documents import Bench, Results
from foreword.documents.chunks import split
from foreword.documents.edits import changed, digests
from foreword.documents.exact import text_ids
from foreword.documents.settings import DocumentSettings
from foreword.reporting.markdown import table

SENTENCE = "The board added this sentence in the spring, after a long talk with Mrs. Halvorsen. "
BETWEEN = re.compile(r"(?<=[.!?]) (?=[A-Z])")


def measure(bench: Bench, results: Results, given: Any) -> None:
    """What the results do not have yet."""
    most = DocumentSettings().chunk_tokens
    counted: dict[str, int] = {}

    def count(text: str) -> int:
        if text not in counted:
            counted[text] = len(text_ids(bench.base, text))
        return counted[text]

    def new_chunks(name: str) -> dict[str, Any]:
        text = bench.text(name)
        known = digests(split(text, count, most))
        places = [match.end() for match in BETWEEN.finditer(text)]
        new = [len(changed(split(text[:at] + SENTENCE + text[at:], count, most), known)) for at in places]
        return {"chunks": len(known), "places": len(new), "mean": statistics.fmean(new), "most": max(new)}

    for name in given.documents:
        results.once({"part": "chunks", "document": name}, lambda: new_chunks(name))  # noqa: B023


def show(rows: Sequence[dict[str, Any]]) -> str:
    """Of each document: its chunks, the places, and the new chunks on average and at most."""
    rows = [row for row in rows if row["part"] == "chunks"]
    lines = [
        [
            row["document"],
            *(str(row[name]) for name in ("chunks", "places")),
            f"{row['mean']:.2f}",
            str(row["most"]),
        ]
        for row in rows
    ]
    columns = ("document", "chunks", "sentences put in", "new chunks, mean", "at most")
    return table(columns, lines, words=1) if lines else ""
