"""Scoring: the figures of texts that are written, by metrics and by part of the data."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from foreword.errors import BadExamples
from foreword.evaluation.metrics import score
from foreword.evaluation.metrics.meteor import keeping_meteor
from foreword.examples.csv_table import find_columns, read_rows
from foreword.examples.e2e import linearise
from foreword.examples.example import Entry
from foreword.examples.jsonl import object_or_none, parse_objects
from foreword.examples.records import Line, excerpt, read_lines
from foreword.template import Source

OUTPUT_COLUMNS = ["MR", "output"]  # of the E2E challenge: tuetschek/e2e-eval, system_outputs

SEEN, UNSEEN = "seen", "unseen"


@dataclass(frozen=True)
class Prediction:
    """What was written (`text`) for one source, beside what could have been.

    Attributes:
        references: the targets of all examples with that source, or of the entry.
        category: of the entry, where the data has it.
    """

    source: Source
    references: tuple[str, ...]
    text: str
    category: str | None = None


def scores_by_part(
    metrics: Sequence[str], outputs: Sequence[Prediction], unseen: Collection[str] = ()
) -> dict[str, dict[str, float]]:
    """Figures of all outputs by name of the set; and, where categories are unseen, of both parts.

    Parts are under "webnlg seen" and "webnlg unseen"; a part without outputs is left out.

    Raises:
        UsageError: see `foreword.evaluation.metrics.score`.
        MetricUnavailable: what a metric needs is not there.
    """
    parts: dict[str, Sequence[Prediction]] = {"": outputs}
    if unseen:
        parts[f" {SEEN}"] = [one for one in outputs if one.category not in unseen]
        parts[f" {UNSEEN}"] = [one for one in outputs if one.category in unseen]
    with keeping_meteor():
        return {
            name + part: figures
            for part, chosen in parts.items()
            if chosen or not part
            for name, figures in score(
                metrics, [one.text for one in chosen], [one.references for one in chosen]
            ).items()
        }


def read_outputs(path: str | os.PathLike[str], entries: Sequence[Entry]) -> list[Prediction]:
    """Texts that something else wrote, one for each entry, in their order.

    Args:
        path: a text a line (an empty line is an empty text); JSON lines with a field `text`, as
            `foreword evaluate --out` writes them; or a table with the columns MR and output, as those of the
            E2E challenge's systems are published.

    Raises:
        CannotRead: absent, or not to be opened.
        BadExamples: another number of texts than entries, JSON without texts, or a table of other data.
    """
    lines = list(read_lines(path))
    if Path(path).suffix in (".jsonl", ".ndjson") or (lines and object_or_none(lines[0].text) is not None):
        texts = []
        for line, record in parse_objects(lines):
            text = record.get("text")
            if not isinstance(text, str):
                raise line.fault(
                    "no field 'text' with a text; expected one an object, as evaluate --out writes"
                )
            texts.append(text)
    elif lines and find_columns(lines[0], OUTPUT_COLUMNS):
        texts = _texts_of_table(lines, entries)
    else:
        texts = [line.text.strip() for line in lines]
    if len(texts) != len(entries):
        raise BadExamples(
            f"{os.fspath(path)} holds {len(texts)} texts for {len(entries)} entries of the data; expected "
            "one for each, in the same order; an entry with nothing written for it needs an empty line"
        )
    return [
        Prediction(entry.source, entry.references, text, entry.category)
        for entry, text in zip(entries, texts, strict=True)
    ]


def _texts_of_table(lines: Sequence[Line], entries: Sequence[Entry]) -> list[str]:
    texts = []
    for place, (line, row) in enumerate(read_rows(iter(lines), OUTPUT_COLUMNS)):
        expected = entries[place].source if place < len(entries) else None
        if expected is not None and linearise(line, row["MR"]) != expected:
            raise line.fault(
                f"MR is {excerpt(row['MR'])}, where the data has {excerpt(str(expected))}; expected a "
                "row for each entry, in the data's order"
            )
        texts.append(row["output"].strip())
    return texts
