"""Admission: owners share places, wait in turns, and nobody who comes late finds nothing."""

from __future__ import annotations

import asyncio
import threading
from contextlib import AsyncExitStack

import pytest

from foreword.serving import admission
from foreword.serving.admission import FairLimiter, Pool, Shares
from foreword.serving.errors import Refused


def taken(shares: Shares, owner: str) -> int:
    """How many places an owner gets who takes all it can."""
    count = 0
    while shares.take(owner):
        count += 1
    return count


def test_an_owner_holds_at_most_what_it_leaves_free() -> None:
    shares = Shares(12)
    assert taken(shares, "alice") == 6
    assert taken(shares, "bob") == 3
    assert taken(shares, "carol") == 1
    for owner, count in (("alice", 6), ("bob", 3), ("carol", 1)):
        shares.give_back(owner, count)
    assert (shares.held, taken(shares, "bob")) == (0, 6)


def test_a_first_request_may_take_more_than_half_and_never_more_than_there_is() -> None:
    shares = Shares(10)
    assert not shares.take("alice", 11)
    assert shares.take("alice", 8)
    assert not shares.take("alice", 1)
    assert shares.take("bob", 2)


def test_a_single_owner_may_hold_everything() -> None:
    assert taken(Shares(5, shared=False), "local") == 5


async def _waits(limiter: FairLimiter, owner: str, told: list[str], amount: int = 1) -> None:
    async with limiter.hold(owner, amount):
        told.append(owner)
        await asyncio.sleep(0.001)


def test_owners_take_turns_however_many_requests_one_has() -> None:
    async def run() -> list[str]:
        limiter, told = FairLimiter(1), list[str]()
        tasks = [asyncio.create_task(_waits(limiter, "mallory", told)) for _ in range(20)]
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(_waits(limiter, "alice", told)) for _ in range(2)]
        await asyncio.gather(*tasks)
        return told

    told = asyncio.run(run())
    assert len(told) == 22
    assert told[:5] == ["mallory", "mallory", "alice", "mallory", "alice"]


def test_a_large_request_is_not_passed_by_small_ones_for_ever() -> None:
    async def run() -> list[str]:
        limiter, told = FairLimiter(4), list[str]()
        async with limiter.hold("alice", 2):
            large = asyncio.create_task(_waits(limiter, "bob", told, 4))
            await asyncio.sleep(0)
            small = asyncio.create_task(_waits(limiter, "carol", told))
            await asyncio.sleep(0.01)
            assert told == []
        await asyncio.gather(large, small)
        return told

    assert asyncio.run(run()) == ["bob", "carol"]


def test_who_gives_up_waiting_holds_nothing() -> None:
    async def run() -> None:
        limiter, told = FairLimiter(1), list[str]()
        async with limiter.hold("alice"):
            waiting = [asyncio.create_task(_waits(limiter, owner, told)) for owner in ("bob", "bob", "carol")]
            await asyncio.sleep(0)
            waiting[0].cancel()
            waiting[2].cancel()
            await asyncio.sleep(0)
        # Cancelled in the moment in which its place became free.
        waiting[1].cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await asyncio.wait_for(_waits(limiter, "dora", told), 5)
        assert told == ["dora"]

    asyncio.run(run())


def test_too_many_that_wait_are_refused_and_other_owners_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MOST_WAITING", 3)

    async def run() -> None:
        limiter, told = FairLimiter(1), list[str]()
        async with limiter.hold("alice"):
            waiting = [asyncio.create_task(_waits(limiter, "mallory", told)) for _ in range(3)]
            await asyncio.sleep(0)
            with pytest.raises(Refused) as caught:
                await _waits(limiter, "mallory", told)
            assert (caught.value.status, caught.value.code) == (429, "too_many_at_once")
            waiting.append(asyncio.create_task(_waits(limiter, "bob", told)))
            await asyncio.sleep(0)
        await asyncio.gather(*waiting)
        assert told == ["mallory", "bob", "mallory", "mallory"]

    asyncio.run(run())


def test_one_owners_slow_work_leaves_threads_to_others() -> None:
    """Twenty uploads that hang, and another owner's still runs."""
    release = threading.Event()

    def hangs() -> None:
        release.wait(30)

    async def run() -> str:
        pool = Pool(4)
        slow = [asyncio.create_task(pool.run("mallory", hangs)) for _ in range(20)]
        await asyncio.sleep(0.01)
        answer = await asyncio.wait_for(pool.run("alice", lambda: "answered"), 10)
        release.set()
        await asyncio.gather(*slow)
        return answer

    assert asyncio.run(run()) == "answered"


def test_a_request_larger_than_all_places_runs_alone() -> None:
    async def run() -> None:
        limiter = FairLimiter(4)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(limiter.hold("alice", 9))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(_waits(limiter, "bob", []), 0.02)
        await asyncio.wait_for(_waits(limiter, "bob", []), 5)

    asyncio.run(run())
