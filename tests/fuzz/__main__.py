"""python -m fuzz: run the fuzzers for a number of inputs or a time, go on with a run, or replay one input.

`make fuzz` calls this. The seed and the numbers of the inputs are kept in the folder's progress.json, so that a
run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

from foreword.errors import ForewordDeprecation
from fuzz import TARGETS
from fuzz.harness import Tally, bound, judge, run

PART = 1000
"""Inputs between two reports."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="how many, over all targets")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", action="append", choices=[each.name for each in TARGETS])
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"), help="failing inputs and progress")
    parser.add_argument("--replay", type=Path, help="a file of that folder: judge it again, and nothing else")
    given = parser.parse_args()
    bound()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore", ForewordDeprecation)  # old names are among the inputs
    if given.replay is not None:
        return _replay(given.replay)
    chosen = [each for each in TARGETS if given.target is None or each.name in given.target]
    wanted = {
        each.name: round(given.inputs * each.share / sum(one.share for one in chosen)) for each in chosen
    }
    progress = given.folder / f"progress-{given.seed}.json"
    tallies = {each.name: Tally() for each in chosen} | _read(progress)
    while left := [each for each in chosen if tallies[each.name].inputs < wanted[each.name]]:
        for target in left:
            tally = tallies[target.name]
            inputs = min(max(1, round(PART * target.share)), wanted[target.name] - tally.inputs)
            run(
                target, seed=given.seed, first=tally.inputs, inputs=inputs, failures=given.folder, tally=tally
            )
        _write(progress, tallies)
        done = sum(tallies[each.name].inputs for each in chosen)
        print(f"{done:,} inputs, {sum(len(t.faults) for t in tallies.values())} faults", end="\r", flush=True)
    print()
    for each in chosen:
        print("\n".join(tallies[each.name].lines(each.name)))
    return int(any(tallies[each.name].faults for each in chosen))


def _replay(path: Path) -> int:
    target = next(each for each in TARGETS if path.name.startswith(f"{each.name}-"))
    content = path.read_bytes()
    outcome, fault = judge(target, content)
    print(f"{outcome}: {fault or 'held'}")
    if fault is not None:
        target.run(content)  # once more, for its traceback
    return int(fault is not None)


def _read(progress: Path) -> dict[str, Tally]:
    if not progress.is_file():
        return {}
    made = {}
    for name, kept in json.loads(progress.read_text()).items():
        made[name] = tally = Tally(kept["inputs"], kept["seconds"])
        tally.outcomes.update(kept["outcomes"])
        tally.faults.update({why: path and Path(path) for why, path in kept["faults"].items()})
    return made


def _write(progress: Path, tallies: dict[str, Tally]) -> None:
    plain: dict[str, Any] = {name: vars(tally) for name, tally in tallies.items()}
    progress.parent.mkdir(parents=True, exist_ok=True)
    beside = progress.with_suffix(".new")
    beside.write_text(json.dumps(plain, default=str))
    beside.replace(progress)


if __name__ == "__main__":
    sys.exit(main())
