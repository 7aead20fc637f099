"""Documents on Gemma-3-270M, most of whose layers attend to a sliding window of 512 tokens: part `gemma`.

At the first ratio the prefix fits into the window; at the second it has more virtual tokens than the window,
so that those layers never see all of it from one token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.documents import Bench, Results, compiled, spread
from foreword.reporting.markdown import table

BASE = "gemma3-270m"
DOCUMENTS = ("handbook", "story", "table")
RATIOS = (10.0, 2.5)


def measure(bench: Bench, results: Results, given: Any) -> None:
    """What the results do not have yet, a line for each document and ratio."""
    options = {} if given.steps is None else {"steps": given.steps}
    own = Bench(BASE, given.dtype, bench.folder / BASE, given.harm_prompts)
    for seed in given.seeds:
        for ratio in RATIOS:
            for name in [name for name in DOCUMENTS if name in given.documents]:
                key = {"part": "gemma", "document": name, "ratio": ratio, "seed": seed}
                key |= {"steps_asked": given.steps}
                results.once(
                    key,
                    lambda: (
                        compiled(own, name, "studied", ratio, seed, **options)  # noqa: B023
                        | {"window": own.base.window}
                    ),
                )


def show(rows: Sequence[dict[str, Any]]) -> str:
    """Means over documents, by ratio."""
    lines = []
    for ratio in RATIOS:
        found = [row for row in rows if row["part"] == "gemma" and row["ratio"] == ratio]
        if found:
            line = [f"{BASE}, {ratio:g} times smaller", str(len({row["document"] for row in found}))]
            line.append(f"{min(row['P'] for row in found)} to {max(row['P'] for row in found)}")
            line.append(str(found[0]["window"]))
            names = ("R_test", "R_test_one", "R_test_several", "harm", "harm_of_document")
            line += [spread([row[name] for row in found]) for name in names]
            lines.append([*line, spread([row["cpu_seconds"] for row in found], 0)])
    columns = ("base", "documents", "P", "window", "R", "one passage", "several", "harm", "of the document")
    return table((*columns, "CPU seconds"), lines) if lines else ""
