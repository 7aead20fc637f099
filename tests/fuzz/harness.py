"""The loop of all fuzzers: input after input, what became of each, and the bounds that none may pass.

An input is bytes, and a function of seed, target and number alone. It holds if the code takes it or raises a
`ForewordError` whose message is fit for people, within `MOST_SECONDS` of the processor and `MOST_BYTES` of memory
more than before. What does not hold is saved as a file, which `python -m fuzz --replay FILE` runs again.
"""

from __future__ import annotations

import contextlib
import random
import re
import resource
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from foreword.errors import ForewordError

MOST_SECONDS = 2.0
MOST_BYTES = 500 << 20
HANGS_SECONDS = 60
"""By the clock: an input that takes longer is stopped."""
LONGEST_MESSAGE = 4000

_PYTHON = re.compile(
    r"object is not|has no attribute|unexpected keyword|argument after|positional argument|NoneType|Traceback|"
    r"subscriptable|unsupported operand|unhashable|list indices|<class '|object at 0x|invalid literal for"
)


class Fault(Exception):
    """What a target says of an answer that no client should get; it is never an answer by name."""


class _Hangs(BaseException):
    """Raised by the alarm, past every `except Exception`."""


@dataclass(frozen=True)
class Target:
    """Something that reads what others wrote.

    Attributes:
        make: an input, by a generator of its own.
        run: reads it; gives a word for what became of it, or raises.
        share: of the inputs of a run with all targets.
    """

    name: str
    make: Callable[[random.Random], bytes]
    run: Callable[[bytes], str]
    share: float


@dataclass
class Tally:
    """What became of the inputs of one target."""

    inputs: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: dict[str, Path | None] = field(default_factory=dict)

    def lines(self, name: str) -> Iterator[str]:
        rate = self.inputs / self.seconds if self.seconds else 0
        found = f"{len(self.faults)} FAULTS" if self.faults else "no fault"
        yield f"{name}: {self.inputs:,} inputs in {self.seconds:.0f} s ({rate:,.0f} a second), {found}"
        yield "    " + ", ".join(f"{outcome} {count:,}" for outcome, count in self.outcomes.most_common())
        for why, path in self.faults.items():
            yield f"    FAULT {why}" + (f"\n          saved as {path}" if path else "")


def input_of(target: Target, seed: int, number: int) -> bytes:
    return target.make(random.Random(f"{seed} {target.name} {number}"))


def judge(target: Target, content: bytes) -> tuple[str, str | None]:
    """A word for what became of an input, and what is wrong with that, or None."""
    peak, begin = _peak_bytes(), time.process_time()
    fault = None
    try:
        with _alarm():
            outcome = target.run(content)
    except ForewordError as error:
        outcome, fault = type(error).__name__, fault_of(type(error).__name__, str(error))
    except Fault as error:
        outcome, fault = "fault", str(error)
    except _Hangs:
        outcome, fault = "hangs", f"no end after {HANGS_SECONDS} s"
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {str(error)[:300]}"
        outcome, fault = "unnamed", f"{what} ({Path(place.filename).name}, line {place.lineno})"
    if (seconds := time.process_time() - begin) > MOST_SECONDS:
        fault = fault or f"{seconds:.1f} s of the processor"
    if (grown := _peak_bytes() - peak) > MOST_BYTES:
        fault = fault or f"{grown >> 20} MiB of memory"
    return outcome, fault


def fault_of(name: str, message: str) -> str | None:
    """What is wrong with an error's message, or None."""
    if not message.strip() or message.startswith(("(", "{")):
        return f"{name} without a message: {message[:200]}"
    if found := _PYTHON.search(message):
        return f"{name} in Python's words ({found[0]!r}): {message[:300]}"
    if len(message) > LONGEST_MESSAGE:
        return f"{name} of {len(message):,} characters: {message[:80]}"
    try:
        message.encode()
    except UnicodeEncodeError:
        return f"{name} that can't be printed: {message[:300]!r}"
    return None


def kind_of(fault: str) -> str:
    """The same for faults that differ in what they quote."""
    found = re.sub(r"\d+", "N", fault)
    if place := re.search(r"\([\w.]+, line N\)$", found):
        return f"{found.split(':')[0]} {place[0]}"
    return re.split(r"\bis '|/tmp/|xxx|: the", found)[0][:100]


def run(
    target: Target,
    *,
    seed: int,
    first: int = 0,
    inputs: int | None = None,
    seconds: float | None = None,
    failures: Path | None = None,
    tally: Tally | None = None,
) -> Tally:
    """Judge the inputs number `first` and those behind it: so many, or for so long.

    Args:
        failures: where a failing input is kept; of a fault that is known already, no second one.
        tally: goes on with this one.
    """
    tally = Tally() if tally is None else tally
    begin = time.monotonic()
    number = first
    while (inputs is None or number - first < inputs) and (
        seconds is None or time.monotonic() - begin < seconds
    ):
        content = input_of(target, seed, number)
        outcome, fault = judge(target, content)
        tally.inputs += 1
        tally.outcomes[outcome] += 1
        if fault is not None and (kind := kind_of(fault)) not in tally.faults:
            tally.faults[kind] = _saved(failures, target, f"{seed}-{number}", content, fault)
        number += 1
    tally.seconds += time.monotonic() - begin
    return tally


def _saved(folder: Path | None, target: Target, name: str, content: bytes, fault: str) -> Path | None:
    if folder is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{target.name}-{name}"
    path.write_bytes(content)
    path.with_name(f"{path.name}.txt").write_text(fault + "\n", errors="backslashreplace")
    return path


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    signal.setitimer(signal.ITIMER_REAL, HANGS_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def bound() -> None:
    """What holds for the whole process: its memory, and an alarm that ends an input without end."""

    def stop(*_: object) -> None:
        raise _Hangs

    signal.signal(signal.SIGALRM, stop)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, hard))
