"""Which examples make which step's batch, decided by the seed alone.

A step's batch is computed without those before it, so a resumed run needs no saved state here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache

BUCKET_BATCHES = 20
"""Batches whose examples are sorted together: alike in length within, still random across."""


class BatchSampler:
    """Batches of indices, epoch after epoch.

    Every example comes once per epoch; a batch may span the end of one epoch and the start of the next.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, *, by_length: bool) -> None:
        """`lengths`: of the examples, in tokens; `by_length`: those of like length share a batch."""
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._by_length = by_length
        self._epoch = lru_cache(maxsize=2)(self._shuffled)

    def batch(self, step: int) -> list[int]:
        """Indices of the examples of one step, counted from 0."""
        count = len(self._lengths)
        first = step * self._batch_size
        return [
            self._epoch(place // count)[place % count] for place in range(first, first + self._batch_size)
        ]

    def _shuffled(self, epoch: int) -> list[int]:
        # A string seed is hashed the same way in every process, and keeps epochs apart.
        generator = random.Random(f"{self._seed}/{epoch}")
        order = list(range(len(self._lengths)))
        generator.shuffle(order)
        if not self._by_length:
            return order
        size = self._batch_size
        bucket = BUCKET_BATCHES * size
        batches: list[list[int]] = []
        for start in range(0, len(order), bucket):
            alike = sorted(order[start : start + bucket], key=lambda i: self._lengths[i])
            batches.extend(alike[place : place + size] for place in range(0, len(alike), size))
        generator.shuffle(batches)
        return [index for batch in batches for index in batch]
