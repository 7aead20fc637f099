"""Prefixes of several similar documents joined, and questions about one of them: part `joining`.

For each of twenty profiles, its prefix joined with those of k - 1 others, in an order drawn at random: of
prefixes that were trained alone, and of those trained together; beside them the k texts themselves in one
context. Each profile's own prefix alone (k = 1, trained alone) is the oracle, which knows the document that a
question is about.

The prefixes that are trained alone are kept one by one; the run that trains all together has checkpoints, and
goes on from them.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.document_profiles import PROFILES, Profile
from benchmarks.documents import JOINED, Bench, Results, exact_prefix
from foreword import BaseModel, Prefix, compile_document
from foreword.documents import compile_documents
from foreword.documents.exact import document_template
from foreword.documents.report import bare_template
from foreword.reporting.markdown import table


def measure(bench: Bench, results: Results, given: Any) -> None:
    """What the results do not have yet: prefixes for the profiles, then each k."""
    bench.folder.mkdir(parents=True, exist_ok=True)
    ratio, profiles = given.ratios[0], PROFILES[: given.profiles]
    for seed in given.seeds:
        key = {"part": "joining", "ratio": ratio, "seed": seed, "steps_asked": given.steps}
        options = {"ratio": ratio, "seed": seed, "steps": given.steps}
        for way in given.ways:
            made: list[Prefix] = []
            for count in given.joined:
                more: dict[str, Any] = {"way": JOINED[way], "joined": count, "profiles": len(profiles)}
                if way == "together":
                    more |= {"neighbours": given.neighbours, "mixed": given.mixed}
                if count > len(profiles) or results.has(key | more):
                    continue
                if way == "alone":
                    made = made or _alone(bench, profiles, options)
                elif way == "together":
                    made = made or _together(bench, profiles, options, given.neighbours, given.mixed)
                chosen = [drawn(number, count, len(profiles), seed) for number in range(len(profiles))]

                def parts(number: int) -> tuple[Prefix, ...]:
                    if made:  # noqa: B023
                        return tuple(made[other] for other in chosen[number])  # noqa: B023
                    text = "\n".join(profiles[other].text for other in chosen[number])  # noqa: B023
                    return (exact_prefix(bench.base, text),)

                results.once(key | more, lambda: _shares(bench.base, len(profiles), parts))


def _name(options: dict[str, Any]) -> str:
    return f"{options['ratio']:g}-{options['seed']}-{options['steps']}"


def _alone(bench: Bench, profiles: Sequence[Profile], options: dict[str, Any]) -> list[Prefix]:
    """A prefix for each profile, which knows of no other; those that are there already are read."""
    paths = [bench.folder / f"joining-{_name(options)}-{number}.prefix" for number in range(len(profiles))]
    for path, profile in zip(paths, profiles, strict=True):
        if not path.exists():
            compile_document(bench.maker, profile.text, **options).save(path)
    return [Prefix.load(path) for path in paths]


def _together(
    bench: Bench, profiles: Sequence[Profile], options: dict[str, Any], neighbours: int, mixed: float
) -> list[Prefix]:
    """A prefix for each profile, of one run that trains them together; read where the run is done."""
    run = f"together-{_name(options)}-{len(profiles)}-{neighbours}-{mixed:g}"
    paths = [bench.folder / f"{run}-{number}.prefix" for number in range(len(profiles))]
    if not all(path.exists() for path in paths):
        made = compile_documents(
            bench.maker,
            {str(number): profile.text for number, profile in enumerate(profiles)},
            together=True,
            neighbours=neighbours,
            mixed=mixed,
            checkpoint_dir=bench.folder / f"{run}.run",
            on_progress=_tell,
            **options,
        )
        for number, path in enumerate(paths):
            made[str(number)].save(path, overwrite=True)
    return [Prefix.load(path) for path in paths]


def _tell(progress: Any) -> None:
    """A line now and then, of one of the documents that train at once."""
    if progress.owner == "0" and progress.note is None and progress.step % 5 == 0:
        print(f"step {progress.step}/{progress.steps}, dev loss of the first {progress.dev_loss}", flush=True)


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
    by_way: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: list(JOINED.values()).index(row["way"])):
        beside = f", up to {row['neighbours']} beside {row['mixed']:.0%}" if "neighbours" in row else ""
        by_way.setdefault(row["way"] + beside, []).append(row)
    alone = [row["R"] for row in rows if row["way"] == JOINED["alone"] and row["joined"] == 1]
    lines = []
    for way, found in by_way.items():
        for count in sorted({row["joined"] for row in found}):
            own = [row for row in found if row["joined"] == count]
            mean = statistics.fmean(row["R"] for row in own)
            line = [way, str(count), str(own[0]["profiles"]), str(len(own)), f"{mean:.2f}"]
            line.append(f"{statistics.fmean(row['R_spread'] for row in own):.2f}")
            lines.append([*line, f"{mean / statistics.fmean(alone):.0%}" if alone else ""])
    columns = ("joined", "k", "documents", "seeds", "R", "spread over documents", "of the oracle")
    return table(columns, lines) if lines else ""
