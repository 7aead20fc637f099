"""Prefixes of several similar documents joined, and questions about one of them: part `joining`.

For each of twenty profiles, its prefix joined with those of k - 1 others, in an order drawn at random; beside
it the k texts themselves in one context. Each profile's own prefix alone (k = 1) is the oracle, which knows
the document that a question is about.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.document_profiles import PROFILES
from benchmarks.documents import Bench, Results, exact_prefix
from foreword import BaseModel, Prefix, compile_document
from foreword.documents.distillation import document_template
from foreword.documents.report import bare_template
from foreword.reporting.markdown import table

WAYS = ("trained alone", "texts")


def measure(bench: Bench, results: Results, given: Any) -> None:
    """What the results do not have yet: a prefix for each profile, then each k."""
    bench.folder.mkdir(parents=True, exist_ok=True)
    options = {} if given.steps is None else {"steps": given.steps}
    ratio, profiles = given.ratios[0], PROFILES[: given.profiles]
    for seed in given.seeds:
        key = {"part": "joining", "ratio": ratio, "seed": seed, "steps_asked": given.steps}
        prefixes = []
        for number, profile in enumerate(profiles):
            path = bench.folder / f"joining-{ratio:g}-{seed}-{given.steps}-{number}.prefix"
            if not path.exists():
                made = compile_document(bench.maker, profile.text, ratio=ratio, seed=seed, **options)
                made.save(path)
            prefixes.append(Prefix.load(path))
        for count in given.joined:
            if count > len(profiles):
                continue
            chosen = [drawn(number, count, len(profiles), seed) for number in range(len(profiles))]

            def joined(number: int) -> tuple[Prefix, ...]:
                return tuple(prefixes[other] for other in chosen[number])  # noqa: B023

            def texts(number: int) -> tuple[Prefix, ...]:
                text = "\n".join(profiles[other].text for other in chosen[number])  # noqa: B023
                return (exact_prefix(bench.base, text),)

            for way, make in zip(WAYS, (joined, texts), strict=True):
                more = {"way": way, "joined": count, "profiles": len(profiles)}
                results.once(key | more, lambda: _shares(bench.base, len(profiles), make))  # noqa: B023


def drawn(number: int, count: int, profiles: int, seed: int) -> list[int]:
    """A profile and `count` - 1 others, in random order."""
    rng = random.Random(f"{seed} {number} {count}")
    found = [number, *rng.sample([other for other in range(profiles) if other != number], count - 1)]
    rng.shuffle(found)
    return found


def _shares(base: BaseModel, profiles: int, make: Callable[[int], tuple[Prefix, ...]]) -> dict[str, Any]:
    """R of the questions about each profile, whose own text alone is the whole."""
    begin = time.perf_counter()
    bare = bare_template(base, document_template(base))
    sums = [0.0, 0.0, 0.0]
    shares = []
    for number in range(profiles):
        profile = PROFILES[number]
        whole = exact_prefix(base, profile.text)
        ways: tuple[Any, ...] = (None, whole, [make(number)] * len(profile.questions))
        losses = (base.token_losses(profile.questions, way, template=bare) for way in ways)
        none, own, found = (float(torch.cat(rows).double().sum()) for rows in losses)
        shares.append((none - found) / (none - own))
        sums = [total + one for total, one in zip(sums, (none, own, found), strict=True)]
    none, own, found = sums
    return {
        "R": round((none - found) / (none - own), 4),
        "R_spread": round(statistics.pstdev(shares), 4),
        "seconds": round(time.perf_counter() - begin, 1),
    }


def show(rows: Sequence[dict[str, Any]]) -> str:
    """R by the number of documents, and as a share of the oracle's."""
    rows = [row for row in rows if row["part"] == "joining"]
    lines = []
    for way in WAYS:
        found = [row for row in rows if row["way"] == way]
        alone = [row["R"] for row in rows if row["way"] == WAYS[0] and row["joined"] == 1]
        for count in sorted({row["joined"] for row in found}):
            own = [row for row in found if row["joined"] == count]
            mean = statistics.fmean(row["R"] for row in own)
            line = [way, str(count), str(own[0]["profiles"]), str(len(own)), f"{mean:.2f}"]
            line.append(f"{statistics.fmean(row['R_spread'] for row in own):.2f}")
            lines.append([*line, f"{mean / statistics.fmean(alone):.0%}" if alone else ""])
    columns = ("joined", "k", "documents", "seeds", "R", "spread over documents", "of the oracle")
    return table(columns, lines) if lines else ""
