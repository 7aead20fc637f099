"""Which rows run and how much of each is read: decided without a model."""

from __future__ import annotations

import random

import pytest

from foreword.serving.engine.continuous_batch import RunningRow
from foreword.serving.engine.protocol import Row, Sampling
from foreword.serving.engine.scheduler import (
    ATTEMPTS,
    LEAST_STEP,
    STEPS_TO_RECOVER,
    TURN,
    FairQueue,
    Scheduler,
    divide,
)


class Simulation:
    """A scheduler whose steps make tokens out of nothing."""

    def __init__(self, **settings: int) -> None:
        self.scheduler = Scheduler(**{"max_rows": 4, "max_held": 65_536, "step_tokens": 128} | settings)
        self.steps = 0
        self._number = 0

    def ask(self, owner: str, prompt: int = 10, new: int = 40) -> RunningRow:
        row = RunningRow(
            Row((1,) * prompt, None, owner, Sampling(new), frozenset()),
            max_new_tokens=new,
            number=self._number,
        )
        self._number += 1
        self.scheduler.put(row)
        return row

    def step(self) -> dict[RunningRow, int]:
        """One round as the engine makes it; what it read."""
        scheduler, before = self.scheduler, list(self.scheduler.running)
        scheduler.drop_gone()
        scheduler.admit()
        scheduler.make_room()
        for row in before:
            if row not in scheduler.running:
                row.forget()
        reads = scheduler.reads()
        assert all(reads[row] == 1 for row in scheduler.running if row.decodes)
        for row, count in reads.items():
            assert 0 < count <= row.unread
            ready = row.unread == count
            row.read += count
            if ready:
                row.gone = row.take(2).finish_reason is not None
        scheduler.went_well()
        self.steps += 1
        return reads

    def until(self, row: RunningRow, most: int = 5000) -> int:
        """Steps until a row has ended."""
        for count in range(most):
            if row.made == row.max_new_tokens:
                return count
            self.step()
        raise AssertionError(f"{row.owner} has {row.made} of {row.max_new_tokens} tokens after {most} steps")


def test_owners_are_taken_in_turns() -> None:
    waiting: FairQueue[str] = FairQueue()
    for owner, item in [("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("c", "c1"), ("b", "b2")]:
        waiting.put(owner, item)
    waiting.put_back("c", "c0")
    assert len(waiting) == 7
    taken = [waiting.next(waiting.owners()[0]) for _ in range(7)]
    assert taken == ["a1", "b1", "c0", "a2", "b2", "c1", "a3"]
    assert waiting.owners() == []


@pytest.mark.parametrize(
    ("whole", "wanted", "expected"),
    [
        (10, [3, 3], [3, 3]),
        (10, [100, 1, 100], [4, 1, 5]),
        (3, [5, 5, 5, 5], [0, 1, 1, 1]),
        (7, [], []),
        (9, [0, 20], [0, 9]),
    ],
)
def test_a_whole_is_divided_evenly_among_those_who_want_it(
    whole: int, wanted: list[int], expected: list[int]
) -> None:
    assert divide(whole, wanted) == expected


def test_an_owner_alone_has_all_places() -> None:
    simulation = Simulation()
    rows = [simulation.ask("alice") for _ in range(6)]
    simulation.step()
    assert simulation.scheduler.running == rows[:4]
    assert simulation.scheduler.waiting == 2


def test_another_owner_gets_a_place_before_a_row_of_the_first_ends() -> None:
    simulation = Simulation()
    rows = [simulation.ask("alice", new=4000) for _ in range(6)]
    for _ in range(20):
        simulation.step()
    one = simulation.ask("bob", new=5)
    assert one in simulation.step()
    assert simulation.scheduler.running == [*rows[:3], one]  # the youngest went
    assert simulation.scheduler.preemptions == 1
    simulation.until(one)
    simulation.step()
    assert rows[3] in simulation.scheduler.running  # in front of its owner's others
    more = [simulation.ask("bob", new=4000) for _ in range(3)]
    for _ in range(50):
        simulation.step()
    assert sum(row.owner == "bob" for row in simulation.scheduler.running) == 2
    assert set(more[:2]) < set(simulation.scheduler.running)
    assert simulation.scheduler.preemptions == 3  # and no row changes places any more


def test_a_row_that_has_just_come_makes_some_tokens_before_it_goes() -> None:
    simulation = Simulation(max_rows=2)
    first, second = (simulation.ask("alice", new=100) for _ in range(2))
    simulation.step()
    assert (first.made, second.made) == (1, 1)
    one = simulation.ask("bob")
    steps = 0
    while one not in simulation.scheduler.running:
        simulation.step()
        steps += 1
    assert second.made == TURN
    assert steps == TURN


def test_a_flood_of_long_prompts_does_not_keep_another_owner_waiting() -> None:
    simulation = Simulation(max_rows=32)
    for _ in range(40):
        simulation.ask("alice", prompt=1500)
    for _ in range(3):
        simulation.step()
    one = simulation.ask("bob", prompt=60, new=2)
    assert simulation.until(one) <= 3


def test_rows_that_nobody_wants_do_not_wait_behind_one_that_can_not_run_yet() -> None:
    simulation = Simulation(max_held=200)
    simulation.ask("alice", prompt=150)
    simulation.step()
    waiting = [simulation.ask("bob", prompt=150), *(simulation.ask("bob") for _ in range(100))]
    simulation.step()
    assert simulation.scheduler.waiting == 101
    for row in waiting[1:]:
        row.gone = True
    simulation.scheduler.drop_gone()
    assert simulation.scheduler.waiting == 1


def test_columns_are_shared_too() -> None:
    """Alice's rows fill the memory, not the places."""
    simulation = Simulation(max_rows=32, max_held=8192)
    for _ in range(6):
        simulation.ask("alice", prompt=1100, new=2000)
    for _ in range(60):
        simulation.step()
    one = simulation.ask("bob", prompt=1100, new=3)
    assert simulation.until(one) <= 20
    assert simulation.scheduler.preemptions == 1


def test_an_owner_who_asks_for_little_does_not_wait_for_a_row_that_fills_the_columns() -> None:
    simulation = Simulation(max_held=8192)
    large = simulation.ask("alice", prompt=7500, new=600)
    for _ in range(3):  # it is still being read
        simulation.step()
    for _ in range(20):
        one = simulation.ask("bob", prompt=60, new=3)
        assert simulation.until(one) <= 5
    assert large in simulation.scheduler.running
    assert simulation.scheduler.preemptions == 0


def test_what_is_kept_for_small_rows_is_bounded_and_not_for_those_who_have_more() -> None:
    """Of 8192 columns an owner may have 256 in an eighth, 1024, that is kept."""
    simulation = Simulation(max_rows=32, max_held=8192)
    simulation.ask("alice", prompt=8100, new=50)
    simulation.step()
    small = [simulation.ask(owner, prompt=200, new=40) for owner in "bcdefg" for _ in range(2)]
    simulation.step()
    assert simulation.scheduler.running[1:] == small[:8:2]
    assert simulation.scheduler.held <= 8192 + 1024


def test_only_rows_of_owners_who_hold_most_take_turns_with_who_holds_nothing() -> None:
    simulation = Simulation(max_held=8192)
    large = [simulation.ask(owner, prompt=3500, new=3000) for owner in ("alice", "bob")]
    while not all(row.decodes for row in large):
        simulation.step()
    one = simulation.ask("carol", prompt=1200, new=3)
    assert simulation.until(one) <= 60
    assert simulation.scheduler.preemptions <= 2
    for row in large:
        simulation.until(row, most=20_000)


def test_rows_of_many_owners_end_without_turns() -> None:
    """Each has a fifth of the columns, and to read it takes as long as half of its tokens."""
    simulation = Simulation(max_rows=32, max_held=10_000, step_tokens=16)
    for row in [simulation.ask(owner, prompt=1700, new=200) for owner in "abcdefgh"]:
        simulation.until(row)
    assert simulation.scheduler.preemptions == 0


def test_a_row_that_fills_the_columns_ends_however_many_small_ones_come() -> None:
    simulation = Simulation(max_held=8192, step_tokens=256)
    large = [simulation.ask(owner, prompt=7500, new=100) for owner in ("alice", "bob")]
    for count in range(4000):
        if count % 3 == 0 and simulation.scheduler.waiting < 20:
            simulation.ask("cde"[count % 9 // 3], prompt=60 if count % 2 else 900, new=20)
        simulation.step()
        if all(row.made == row.max_new_tokens for row in large):
            break
    assert [row.made for row in large] == [100, 100]


def test_a_step_reads_no_more_than_it_may_and_a_long_prompt_stops_no_short_one() -> None:
    simulation = Simulation(max_rows=8)
    decoding = simulation.ask("alice")
    assert simulation.step() == {decoding: 10}
    long, short, of_bob = (
        simulation.ask("alice", 1500),
        simulation.ask("alice", 30),
        simulation.ask("bob", 40),
    )
    assert simulation.step() == {decoding: 1, long: 57, short: 30, of_bob: 40}
    reads = simulation.step()
    assert reads == {decoding: 1, short: 1, of_bob: 1, long: 125}
    assert sum(reads.values()) == 128


def test_rows_that_decode_are_read_however_many_there_are() -> None:
    simulation = Simulation(max_rows=200, step_tokens=32)
    rows = [simulation.ask("alice", prompt=1) for _ in range(150)]
    for _ in range(12):
        simulation.step()
    assert simulation.step() == dict.fromkeys(rows, 1)


def test_a_row_that_alone_needs_more_than_there_is_still_runs() -> None:
    simulation = Simulation(max_held=10)
    assert simulation.until(simulation.ask("alice", prompt=500)) <= 50


def test_rows_that_outgrow_the_memory_take_turns_and_all_end() -> None:
    """Each comes to need 512 of 600 columns: they start together, and no row is put out without end."""
    simulation = Simulation(max_held=600, max_rows=8)
    rows = [simulation.ask(owner, new=400) for owner in ("alice", "bob", "alice", "eve", "bob", "alice")]
    for row in rows:
        simulation.until(row)
        assert simulation.scheduler.held <= 600
    assert simulation.scheduler.preemptions > 0
    assert simulation.steps <= len(rows) * 400 + simulation.scheduler.preemptions * 10


@pytest.mark.parametrize("seed", range(8))
def test_every_row_ends_whatever_others_do(seed: int) -> None:
    """Owners with rows of all sizes, who keep asking while others wait; memory runs out now and then."""
    chance = random.Random(seed)
    simulation = Simulation(max_rows=chance.choice([2, 5, 32]), max_held=chance.choice([300, 2000, 9000]))
    rows = []
    for _ in range(400):
        if chance.random() < 0.25:
            size = (chance.choice([1, 30, 700]), chance.choice([1, 20, 150]))
            rows.append(simulation.ask(chance.choice("aaaab"), *size))
        if chance.random() < 0.01 and simulation.scheduler.running:
            before = list(simulation.scheduler.running)
            if simulation.scheduler.retreat():
                for row in before:
                    if row not in simulation.scheduler.running:
                        row.forget()
        simulation.step()
    for row in rows:
        simulation.until(row)
    simulation.step()
    assert simulation.scheduler.running == []
    assert simulation.scheduler.waiting == 0


def test_after_memory_ran_out_less_is_tried_and_later_as_much_as_before() -> None:
    simulation = Simulation(max_rows=8, step_tokens=64)
    rows = [simulation.ask(owner, new=2000) for owner in "abcdefgh"]
    for _ in range(10):
        simulation.step()
    assert simulation.scheduler.retreat()
    assert simulation.scheduler.running == rows[:4]
    for row in rows[4:]:
        row.forget()
    simulation.step()
    assert simulation.scheduler.running == rows[:4]  # they don't come back at once
    for _ in range(3 * STEPS_TO_RECOVER):
        simulation.step()
    assert set(simulation.scheduler.running) == set(rows)
    worth_trying = [simulation.scheduler.retreat() for _ in range(3 + ATTEMPTS)]
    # Of 8 rows 4, 2, 1 are left, and meanwhile the step is the least; the row alone is tried some times.
    assert worth_trying == [True] * (2 + ATTEMPTS) + [False]
    assert simulation.scheduler.running == rows[:1]
    assert LEAST_STEP == 64 >> 2


def test_a_step_reads_fewer_tokens_of_a_text_that_many_stand_before() -> None:
    """A token that attends to 1000 columns is as much work as two that attend to none."""
    simulation = Simulation(max_held=1 << 20, columns_per_token=1000)
    long = simulation.ask("mallory", prompt=6000, new=1)
    counts = [simulation.step()[long]]
    while long.read < 6000:
        before = long.read
        counts.append(simulation.step()[long])
        assert counts[-1] * (1 + before / 1000) <= 128
    assert counts[0] == 128
    assert counts[-2] == int(128 / (1 + (6000 - sum(counts[-2:])) / 1000)) < 20
    assert sum(counts) == 6000


def test_where_owners_share_a_step_of_few_tokens_each_long_text_goes_on() -> None:
    simulation = Simulation(max_rows=40, max_held=1 << 20, step_tokens=LEAST_STEP, columns_per_token=10)
    rows = [simulation.ask(f"owner{number}", prompt=30, new=1) for number in range(40)]
    for row in rows:
        simulation.until(row, 100)
