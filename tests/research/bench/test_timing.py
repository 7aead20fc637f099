"""Timing in turns, against a clock that is told what to say."""

from __future__ import annotations

import pytest

from foreword.research.bench.timing import Spread, in_turns, spread


def test_ways_take_turns_after_one_round_to_warm_up() -> None:
    now, calls = 0.0, []

    def way(name: str, seconds: list[float]):
        def work(number: int) -> None:
            nonlocal now
            calls.append((name, number))
            now += seconds[number] if number >= 0 else 100

        return work

    told: list[int] = []
    turns = in_turns(
        {"a": way("a", [1, 2, 4]), "b": way("b", [3, 4, 0])},
        3,
        fewer={"b": 2},
        clock=lambda: now,
        on_round=told.append,
    )
    assert calls == [("a", -1), ("b", -1), ("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2)]
    assert turns.seconds == {"a": [1, 2, 4], "b": [3, 4]}
    assert told == [1, 2, 3]
    assert turns.of("a").median == 2
    assert turns.faster("a", than="b") == Spread(2.5, 2.25, 2.75)  # of 3/1 and 4/2


def test_a_spread_is_median_and_quartiles() -> None:
    assert spread([5, 1, 3, 2, 4]) == Spread(3, 2, 4)
    assert spread([7]) == Spread(7, 7, 7)
    assert str(spread([1, 2, 3])) == "2.00 (1.50 to 2.50)"
    with pytest.raises(ValueError):
        spread([])
