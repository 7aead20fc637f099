"""Ten edits in a row on one document, part `edits`: training on from the prefix before, beside anew."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.documents import FOLDER, Bench, Results, exact_prefix
from foreword import Example, Prefix, compile_document
from foreword.documents.exact import document_template
from foreword.documents.report import answered, bare_template, recovered
from foreword.reporting.markdown import table

DOCUMENT = "handbook"


@dataclasses.dataclass(frozen=True)
class Edit:
    """One change to the document, and a question about what is new."""

    find: str
    replace: str
    question: str
    answer: str


EDITS = (
    Edit(
        "A full week is 36.5 hours.",
        "A full week is 34.5 hours.",
        "How many hours is a full week at Brindle & Hawke?",
        "34.5 hours.",
    ),
    Edit(
        "looked after by Dagny Pellow, who leads Personnel",
        "looked after by Tamsin Orrick, who leads Personnel",
        "Who looks after the handbook of Brindle & Hawke?",
        "Tamsin Orrick.",
    ),
    Edit(
        "laid in your pigeonhole by Corwin Aske of Accounts",
        "laid in your pigeonhole by Beatrix Fenlow of Accounts",
        "Who lays the payslips in the pigeonholes?",
        "Beatrix Fenlow of Accounts.",
    ),
    Edit(
        "ring extension 417 before 8:05",
        "ring extension 562 before 7:50",
        "Which extension do you ring if you are ill?",
        "Extension 562.",
    ),
    Edit(
        "The safety officer is Ines Varga-Holt of the paint hall.",
        "The safety officer is Leopold Marchetti of the workshop.",
        "Who is the safety officer?",
        "Leopold Marchetti of the workshop.",
    ),
    Edit(
        "The company has three vans, called Dobbin, Pepper and Magpie.",
        "The company has four vans, called Dobbin, Pepper, Magpie and Wren.",
        "What are the company's four vans called?",
        "Dobbin, Pepper, Magpie and Wren.",
    ),
    Edit(
        "A hotel may cost up to 88 crowns a night",
        "A hotel may cost up to 104 crowns a night",
        "How much may a hotel cost a night?",
        "Up to 104 crowns.",
    ),
    Edit(
        "The company pays the fee of 2,850 crowns",
        "The company pays the fee of 3,275 crowns",
        "How high is the fee for the master's examination that the company pays?",
        "3,275 crowns.",
    ),
    Edit(
        "Its chair is Osric Plumley, a master in the carving shop.",
        "Its chair is Hanneke Dowd, a gilder in the paint hall.",
        "Who is the chair of the staff council?",
        "Hanneke Dowd.",
    ),
    Edit(
        "is given a carved miniature horse in the colour of their choice",
        "is given a painted barrel organ that plays three tunes",
        "What is someone given who leaves after 15 years or more?",
        "A painted barrel organ that plays three tunes.",
    ),
)


def edited(text: str, edits: int) -> str:
    """The document after its first `edits` edits."""
    for edit in EDITS[:edits]:
        if text.count(edit.find) != 1:
            raise SystemExit(
                f"{edit.find!r} stands {text.count(edit.find)} times in the document, expected 1"
            )
        text = text.replace(edit.find, edit.replace)
    return text


def unchanged_questions() -> list[Example]:
    """The document's questions that no edit touches: their evidence is there before all and after all."""
    last = edited((FOLDER / f"{DOCUMENT}.md").read_text(encoding="utf-8"), len(EDITS))
    lines = (FOLDER / f"{DOCUMENT}.questions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [
        Example(source=row["question"], target=row["answer"])
        for row in rows
        if row["split"] == "test" and all(passage in last for passage in row["evidence"])
    ]


def measure(bench: Bench, results: Results, given: Any) -> None:
    """What the results do not have yet: the first prefix, each edit's, and those made anew."""
    bench.folder.mkdir(parents=True, exist_ok=True)
    options = {} if given.steps is None else {"steps": given.steps}
    text = bench.text(DOCUMENT)
    for seed in given.seeds:
        first = _path(bench, given, seed, 0)
        for number in range(len(EDITS) + 1):
            if number > given.edits:
                break
            key = {"part": "edits", "document": DOCUMENT, "ratio": given.ratios[0], "seed": seed}
            key |= {"steps_asked": given.steps, "edit": number}
            state, path = edited(text, number), _path(bench, given, seed, number)

            def on() -> dict[str, Any]:
                before = Prefix.load(_path(bench, given, seed, number - 1))  # noqa: B023
                return _made(bench, state, number, path, seed, previous=before, **options)  # noqa: B023

            def anew(kept: Path | None) -> dict[str, Any]:
                size = {"ratio": given.ratios[0]} if number == 0 else {"length": Prefix.load(first).length}  # noqa: B023
                return _made(bench, state, number, kept, seed, **size, **options)  # noqa: B023

            if number == 0:
                results.once(key | {"way": "anew"}, lambda: anew(path))  # noqa: B023
            else:
                results.once(key | {"way": "on"}, on)
                if number in given.anew:
                    results.once(key | {"way": "anew"}, lambda: anew(None))


def _path(bench: Bench, given: Any, seed: int, number: int) -> Path:
    return bench.folder / f"edits-{given.ratios[0]:g}-{seed}-{given.steps}-{number}.prefix"


def _made(
    bench: Bench, text: str, number: int, path: Path | None, seed: int, **options: Any
) -> dict[str, Any]:
    """A prefix of the document as it is after `number` edits, made and measured; kept at `path`."""
    begin, cpu = time.perf_counter(), time.process_time()
    prefix = compile_document(bench.maker, text, seed=seed, **options)
    seconds = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu}
    if path is not None:
        prefix.save(path, overwrite=True)
    base = bench.base
    document = exact_prefix(base, text)
    bare = bare_template(base, document_template(base))
    about = {
        "unchanged": unchanged_questions(),
        "new": [Example(edit.question, edit.answer) for edit in EDITS[:number]],
    }
    found: dict[str, Any] = {}
    for kind, examples in about.items():
        if examples:
            share = recovered(base, prefix, document, examples)[""].share
            found[f"R_{kind}"] = None if share is None else round(share, 4)
            found[f"right_{kind}"] = round(answered(base, prefix, examples, bare), 4)
            found[f"right_{kind}_document"] = round(answered(base, document, examples, bare), 4)
    return {
        **{what: round(value, 1) for what, value in seconds.items()},
        "P": prefix.length,
        "steps": prefix.origin.steps,
        **found,
    }


def show(rows: Sequence[dict[str, Any]]) -> str:
    """After each edit: both ways, and the share of the time."""
    rows = [row for row in rows if row["part"] == "edits"]
    if not rows:
        return ""
    anew = [row for row in rows if row["way"] == "anew"]
    usual = statistics.fmean(row["cpu_seconds"] for row in anew)
    lines = []
    for row in sorted(rows, key=lambda row: (row["seed"], row["edit"], row["way"])):
        line = [str(row["edit"]), "trained on" if row["way"] == "on" else "anew", str(row["seed"])]
        names = ("R_unchanged", "R_new", "right_unchanged", "right_new")
        line += ["" if row.get(name) is None else f"{row[name]:.2f}" for name in names]
        lines.append([*line, f"{row['cpu_seconds']:.0f}", f"{row['cpu_seconds'] / usual:.0%}"])
    columns = ("edits", "way", "seed", "R, unchanged parts", "R, new facts", "right, unchanged parts")
    columns += ("right, new facts", "CPU seconds", "of anew")
    return table(columns, lines, words=2)
