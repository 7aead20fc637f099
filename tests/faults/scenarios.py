"""A scenario: operations one after the other, run once to find the points, and again for each failure of each.

The run that finds the points also gives the states between the operations. Whatever fails later, a fresh look from
outside must then find the state before the operation that failed or the one after it, and nothing in between;
repeating the operation, and going on to the end, must lead to the last state, without anything left over.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from faults.boundary import (
    BESIDE,
    FAILURES,
    KILLS,
    LOST_AFTER,
    MEMORY,
    OF_DATABASES,
    POSTGRES_ONLY,
    Boundary,
    Point,
)
from foreword.errors import ForewordError

PATIENCE = 60.0
"""Seconds after which a run counts as one that hangs."""
LONG_AGO = 7200.0
"""Age in seconds that leftovers of killed processes get before they are looked for."""
_MEMORY = (MemoryError, torch.OutOfMemoryError)


class World:
    """Where a scenario takes place: what its operations need, and what they leave for one another."""

    folder: Path
    make_room: Callable[[], None] = staticmethod(lambda: None)
    """For operations that go on by themselves after a failure: a full disk has room again."""

    def prepare(self) -> None:
        """Make what is there before the first operation."""

    def reset(self) -> None:
        """Back to what `prepare` made."""

    def fresh(self) -> World:
        """The same place, seen by a process that knows nothing yet."""
        raise NotImplementedError

    def state(self) -> Any:
        """What a process that knows nothing yet finds; plain data. Raises where something can't be read."""
        raise NotImplementedError

    def check_clean(self) -> list[str]:
        """Let everything that cleans up do so; what is left over all the same."""
        return []

    def close(self) -> None:
        """Let go of what is open."""


@dataclasses.dataclass(frozen=True)
class Operation:
    """One step of a scenario.

    Attributes:
        repeat: what says, at a repetition, that it was done the first time; None: it isn't repeated once done.
        whole: it happens wholly or not at all; else only its repetition is looked at.
    """

    name: str
    do: Callable[[Any], Any]
    done_before: tuple[type[Exception], ...] | None = ()
    whole: bool = True


@dataclasses.dataclass(frozen=True)
class Scenario:
    """Operations in their order.

    Attributes:
        meanwhile: what somebody else does at the point of failure, where no lock is held. It is seen in `state`
            under the key "others", which a failure must never change.
        tolerated: sites whose failed writes may pass unseen, each with the reason.
        only: which points are made to fail; all, where it is not given.
        failures: in which ways; all that fit the point, where it is not given.
        sparse: each way of failing once for each site; see `injections`.
        recovers: an operation goes on by itself after a failure: that it is done does not mean that nothing failed.
        final: the state in the end, where what happens meanwhile changes it.
    """

    name: str
    operations: Sequence[Operation]
    meanwhile: Callable[[Any], Any] | None = None
    tolerated: dict[str, str] = dataclasses.field(default_factory=dict)
    only: Callable[[Point], bool] = lambda point: True
    failures: Sequence[str] | None = None
    sparse: bool = False
    recovers: bool = False
    final: dict[str, Any] | None = None


@dataclasses.dataclass
class Outcome:
    """What a scenario's runs showed."""

    points: int = 0
    failures: int = 0
    kinds: Counter[str] = dataclasses.field(default_factory=Counter)
    problems: list[str] = dataclasses.field(default_factory=list)


def failures_of(scenario: Scenario, point: Point, *, postgres: bool) -> Iterator[str]:
    """What can go wrong at a point, in this scenario."""
    if scenario.failures is not None:
        yield from scenario.failures
        return
    for failure in FAILURES[point.kind]:
        if postgres or failure not in POSTGRES_ONLY:
            yield failure
    if scenario.meanwhile is not None:
        yield BESIDE


ALIKE = ("query", "statement")
"""Kinds whose points at one site are alike: a query changes nothing, and whichever way a statement fails, or its
process dies, the transaction is undone."""


def injections(scenario: Scenario, points: Sequence[Point], *, postgres: bool) -> Iterator[tuple[Point, str]]:
    """The points to be failed, and the ways.

    Every point fails in every way, except these:
      - queries and statements: the first of a site fails in every way, each later one in one, in turn;
      - of a sparse scenario, and on PostgreSQL of what has failed everywhere on SQLite: each way once for each
        kind and site, at its first, second, third, ... point.
    """
    of_site: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        of_site.setdefault((point.kind, point.site), []).append(point)
    for (kind, _), alike in of_site.items():
        ways = list(failures_of(scenario, alike[0], postgres=postgres))
        if scenario.sparse or postgres:
            yield from ((alike[number % len(alike)], way) for number, way in enumerate(ways))
            continue
        for number, point in enumerate(alike):
            in_turn = number > 0 and kind in ALIKE
            yield from ((point, way) for way in (ways[number % len(ways) :][:1] if in_turn else ways))


def check(scenario: Scenario, world: World, *, postgres: bool) -> Outcome:
    """Find the points of a scenario, and let each fail in every way."""
    outcome = Outcome()
    world.prepare()
    world.reset()
    states = [world.state()]
    run = _Run(scenario, world, None, None)
    for index in range(len(scenario.operations)):
        message = run.next()
        if message is None or "done" not in message:
            raise AssertionError(
                f"{scenario.name}: {scenario.operations[index].name} fails undisturbed: {message}"
            )
        states.append(world.state())
        run.go()
    points = [Point(*point) for point in run.next()["points"]]
    run.end()
    _clean(world)
    assert points, f"{scenario.name} reaches no point"
    chosen = [point for point in points if scenario.only(point)]
    if postgres and scenario.meanwhile is None:  # what happens to files depends on no database: see SQLite
        chosen = [point for point in chosen if point.kind in OF_DATABASES]
    assert chosen, "no point of this scenario is to be failed"
    failed = set()
    for point, failure in injections(scenario, chosen, postgres=postgres):
        failed.add(point)
        outcome.failures += 1
        outcome.kinds[failure] += 1
        world.reset()
        try:
            found = _inject(scenario, world, states, point, failure)
        except Exception:
            found = traceback.format_exc(limit=-6)
        if found is not None:
            outcome.problems.append(f"{scenario.name}: {failure} at {point}: {found}")
    outcome.points = len(failed)
    return outcome


def _inject(scenario: Scenario, world: World, states: list[Any], point: Point, failure: str) -> str | None:
    """Let one point fail once; what was wrong afterwards."""
    run = _Run(scenario, world, point, failure)
    operations = scenario.operations
    done = 0
    try:
        while (message := run.next()) is not None and not message["hit"]:
            if "failed" in message:
                return f"{operations[done].name} failed before the point: {message}"
            if "points" in message:
                return "the point was never reached"
            done += 1
            run.go()
        name = operations[done].name
        state = world.state()
        if message is None:
            if failure not in KILLS:
                return f"the process died in {name}: status {run.status()}"
        elif "failed" in message:
            if not message["named"] and not (failure == MEMORY and message["memory"]):
                return f"{name} raised {message['failed']}, which no caller expects: {message['text']}"
            if failure == BESIDE:
                return f"{name} failed beside another's call: {message['failed']}: {message['text']}"
        elif failure in KILLS:
            return f"{name} went on after the kill"
        # Whoever was told that it is done finds it done; else it is done or it isn't, and nothing in between.
        confirmed = message is not None and "done" in message
        if (
            confirmed
            and not scenario.recovers
            and failure not in (BESIDE, LOST_AFTER)
            and point.kind in ("write", "flush", "create", "rename")
            and point.site not in scenario.tolerated
            and message is not None
            and not message["again"]
        ):
            return f"{name} was confirmed although its {point.kind} failed"
        allowed = [states[done + 1]] if confirmed else [states[done], states[done + 1]]
        others = None
        if scenario.meanwhile is not None and scenario.final is None:
            others = state.pop("others")
            allowed = [{k: v for k, v in each.items() if k != "others"} for each in allowed]
        if scenario.final is not None:
            state, allowed = _without_log(state), [scenario.final]
        if (operations[done].whole or confirmed) and state not in allowed:
            return f"after {name}: {_difference(state, allowed)}"
        was_done = confirmed or state == allowed[-1]
        if message is None:
            _age(world.folder)
            rest = world.fresh()
            for operation in operations[done:]:
                if not (was_done and operation is operations[done] and operation.done_before is None):
                    _repeat(rest, operation)
            rest.close()
        else:
            run.go(again=not confirmed and not (was_done and operations[done].done_before is None))
            while (message := run.next()) is not None and "points" not in message:
                if "failed" in message:
                    return f"{name} failed again: {message['failed']}: {message['text']}"
                run.go()
            if message is None:
                return f"the process died later: status {run.status()}"
        final = world.state()
        if scenario.final is not None:
            expected = scenario.final
        elif scenario.meanwhile is not None:
            if others is not None and final["others"] != others:
                return f"what another was promised is gone: {_difference(final['others'], [others])}"
            final.pop("others")
            expected = {k: v for k, v in states[-1].items() if k != "others"}
        else:
            expected = states[-1]
        if _without_log(final) != _without_log(expected):
            return f"at the end: {_difference(_without_log(final), [_without_log(expected)])}"
        if left := _clean(world):
            return f"left over: {left}"
        return None
    finally:
        run.end()


def _clean(world: World) -> list[str]:
    _age(world.folder)
    return world.check_clean()


def _repeat(world: World, operation: Operation) -> None:
    with contextlib.suppress(*(operation.done_before or ())):
        operation.do(world)


def _without_log(state: Any) -> Any:
    """A state without what says how often something was asked for."""
    return {name: each for name, each in state.items() if name != "audit"}


def _difference(found: Any, expected: Sequence[Any]) -> str:
    if isinstance(found, dict):
        return "; or ".join(
            ", ".join(
                f"{name} is {found.get(name)!r}, expected {one.get(name)!r}"
                for name in sorted({*found, *one})
                if found.get(name) != one.get(name)
            )
            for one in expected
        )
    return f"found {found!r}, expected {expected!r}"


def _age(folder: Path) -> None:
    """Let everything in a folder be of long ago."""
    then = time.time() - LONG_AGO
    for above, folders, names in os.walk(folder):
        for name in (*folders, *names):
            os.utime(os.path.join(above, name), (then, then), follow_symlinks=False)


class _Run:
    """A scenario in a process of its own, forked: it says what each operation came to, and waits for a sign."""

    def __init__(self, scenario: Scenario, world: World, target: Point | None, failure: str | None) -> None:
        self._answers, answers = os.pipe()
        signs, self._signs = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._answers)
            os.close(self._signs)
            status = 1
            try:
                _play(scenario, world, Boundary(world.folder, target, failure), answers, signs)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(answers)
        os.close(signs)
        self._reader = os.fdopen(self._answers, "r")
        self._status: int | None = None

    def next(self) -> dict[str, Any] | None:
        """What it says next; None when it has died."""
        import select

        if not select.select([self._reader], [], [], PATIENCE)[0]:
            raise AssertionError(f"no answer for {PATIENCE:g} seconds")
        line = self._reader.readline()
        return json.loads(line) if line.endswith("\n") else None

    def go(self, *, again: bool = True) -> None:
        """Let it go on; `again`: repeating what failed."""
        os.write(self._signs, b"a" if again else b"n")

    def status(self) -> int:
        """What it ended with."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return self._status

    def end(self) -> None:
        """Make sure that it is gone."""
        if self._status is None:
            os.kill(self._pid, 9)
            self.status()
        self._reader.close()
        os.close(self._signs)


def _play(scenario: Scenario, world: World, boundary: Boundary, answers: int, signs: int) -> None:
    def say(**message: Any) -> bool:
        os.write(answers, (json.dumps({**message, "hit": boundary.hit}) + "\n").encode())
        return os.read(signs, 1) == b"a"

    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # the logs of those who are made to fail
    if scenario.meanwhile is not None:
        others = scenario.meanwhile
        boundary.meanwhile = lambda: others(world)
    boundary.install()
    world.make_room = boundary.make_room

    def attempt(operation: Operation, expected: tuple[type[Exception], ...] = ()) -> dict[str, Any]:
        try:
            with boundary.watching():
                operation.do(world)
        except expected:
            pass
        except Exception as error:
            memory, named = isinstance(error, _MEMORY), isinstance(error, ForewordError)
            where = "".join(traceback.format_exception(error, limit=-4))[-1500:]
            return {"failed": type(error).__name__, "text": where, "named": named, "memory": memory}
        return {"done": operation.name, "again": boundary.again}

    told = False
    for operation in scenario.operations:
        message = attempt(operation)
        if not told:
            again = say(**message)
            told = boundary.hit
            if "failed" in message:
                message = attempt(operation, operation.done_before or ()) if again else {}
        if "failed" in message:
            say(**message)
            return
    world.close()
    say(points=[dataclasses.astuple(point) for point in boundary.points])
