"""Order of the examples: decided by the seed, every example once an epoch."""

from __future__ import annotations

import pytest

from foreword.training.batch_sampler import BatchSampler


def one_epoch(order: BatchSampler, count: int, batch: int, epoch: int = 0) -> list[int]:
    steps = count // batch
    return [i for step in range(epoch * steps, (epoch + 1) * steps) for i in order.batch(step)]


@pytest.mark.parametrize("by_length", [False, True])
def test_every_example_comes_once_an_epoch_and_epochs_differ(by_length: bool) -> None:
    order = BatchSampler([n % 7 for n in range(40)], 4, seed=3, by_length=by_length)
    first, second = one_epoch(order, 40, 4, 0), one_epoch(order, 40, 4, 1)
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second


def test_the_seed_alone_decides_and_decides() -> None:
    lengths = list(range(40))
    one, two, other = (
        one_epoch(BatchSampler(lengths, 4, seed, by_length=False), 40, 4) for seed in (3, 3, 4)
    )
    assert one == two
    assert one != other


def test_a_step_can_be_told_without_those_before_it() -> None:
    fresh = BatchSampler(list(range(10)), 4, 0, by_length=False)
    walked = BatchSampler(list(range(10)), 4, 0, by_length=False)
    for step in range(9):
        walked.batch(step)
    assert fresh.batch(9) == walked.batch(9)


def test_by_length_puts_like_lengths_together() -> None:
    lengths = [(n * 37) % 100 for n in range(400)]

    def spread(order: BatchSampler) -> int:
        batches = [[lengths[i] for i in order.batch(step)] for step in range(100)]
        return sum(max(batch) - min(batch) for batch in batches)

    assert (
        spread(BatchSampler(lengths, 4, 0, by_length=True))
        < spread(BatchSampler(lengths, 4, 0, by_length=False)) / 4
    )
