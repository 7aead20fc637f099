"""Some thousands of inputs of every target, with another seed than `make fuzz`, and the loop's own promises."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from foreword.errors import ForewordError
from fuzz import TARGETS
from fuzz.harness import Fault, Target, bound, input_of, judge, run

INPUTS = 150_000
"""Over all targets; those that are slow have a smaller share."""


@pytest.fixture(autouse=True, scope="module")
def _bounds() -> Iterator[None]:
    bound()
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_input_is_taken_or_refused_by_name(target: Target, tmp_path: Path) -> None:
    tally = run(target, seed=7, inputs=round(INPUTS * target.share), failures=tmp_path)
    print("\n".join(tally.lines(target.name)))
    assert not tally.faults, "\n".join(tally.lines(target.name))
    assert len(tally.outcomes) > 2, tally.outcomes  # neither everything refused nor everything taken
    assert any("taken" in outcome or outcome in ("200", "server") for outcome in tally.outcomes), (
        tally.outcomes
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_an_input_depends_on_seed_and_number_alone(target: Target) -> None:
    assert [input_of(target, 3, number) for number in range(5)] == [
        input_of(target, 3, number) for number in range(5)
    ]
    assert input_of(target, 3, 0) != input_of(target, 4, 0)


def _target(behaviour: str) -> Target:
    def run_it(content: bytes) -> str:
        if behaviour == "named":
            raise ForewordError("the file is damaged; fetch it again")
        if behaviour == "unnamed":
            raise KeyError("x")
        if behaviour == "python":
            raise ForewordError("'int' object is not iterable")
        if behaviour == "nothing":
            raise ForewordError("")
        if behaviour == "answer":
            raise Fault("POST /x gives 500")
        if behaviour == "slow":
            begin = time.process_time()
            while time.process_time() - begin < 2.2:
                pass
        if behaviour == "memory":
            assert len(bytearray(700 << 20)) > 0
        return "taken"

    return Target("made-up", lambda rng: rng.randbytes(3), run_it, 1)


@pytest.mark.parametrize("behaviour", ["taken", "named"])
def test_what_holds_is_no_fault(behaviour: str) -> None:
    assert judge(_target(behaviour), b"")[1] is None


@pytest.mark.parametrize("behaviour", ["unnamed", "python", "nothing", "answer", "slow", "memory"])
def test_what_does_not_hold_is_found_and_kept(behaviour: str, tmp_path: Path) -> None:
    tally = run(
        _target(behaviour), seed=1, inputs=1 if behaviour in ("slow", "memory") else 5, failures=tmp_path
    )
    assert len(tally.faults) == 1
    (kept,) = (path for path in tally.faults.values() if path is not None)
    assert kept.read_bytes() == input_of(_target(behaviour), 1, 0)


def test_an_input_that_never_ends_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzz.harness.HANGS_SECONDS", 0.2)

    def wait(content: bytes) -> str:
        while True:
            try:
                time.sleep(1)
            except Exception:
                continue

    outcome, fault = judge(Target("waits", random.Random.getstate, wait, 1), b"")  # type: ignore[arg-type]
    assert outcome == "hangs"
    assert fault
