"""Rate limits: how many requests and tokens a key may have in a minute, in this process.

A bucket holds a minute's worth and refills steadily. Tokens are known only when they are there, so
they may bring a bucket below zero: the next request then waits until it is filled again.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from foreword.serving.config import Limits
from foreword.serving.errors import Refused

MOST_KEYS = 10_000
"""Buckets kept; full ones say nothing and go first."""


class Bucket:
    """A token bucket: so much a minute, at most a minute's worth at once."""

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self.per_minute = per_minute
        self.level = float(per_minute)
        self._clock = clock
        self._filled = clock()

    def fill(self) -> None:
        """Add what time has brought."""
        now = self._clock()
        self.level = min(self.per_minute, self.level + (now - self._filled) * self.per_minute / 60)
        self._filled = now

    def seconds_until(self, amount: float) -> float:
        """How long until `amount` is there; 0 when it is."""
        return max(0.0, (amount - self.level) * 60 / self.per_minute)


class Limiter:
    """The buckets of all keys."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str], Bucket] = {}
        self._lock = threading.Lock()

    def admit(self, who: str, limits: Limits) -> None:
        """Count a request. Raises Refused: 429, with the seconds to wait."""
        with self._lock:
            requests = self._bucket(who, "requests", limits.requests_per_minute)
            tokens = self._bucket(who, "tokens", limits.tokens_per_minute)
            if requests is not None and (wait := requests.seconds_until(1)) > 0:
                raise too_many(f"{limits.requests_per_minute} requests a minute", wait, "requests_per_minute")
            if tokens is not None and (wait := tokens.seconds_until(0)) > 0:
                raise too_many(f"{limits.tokens_per_minute} tokens a minute", wait, "tokens_per_minute")
            if requests is not None:
                requests.level -= 1

    def spend(self, who: str, limits: Limits, tokens: int) -> None:
        """Count tokens of a prompt or an answer."""
        with self._lock:
            bucket = self._bucket(who, "tokens", limits.tokens_per_minute)
            if bucket is not None:
                bucket.level -= tokens

    def _bucket(self, who: str, what: str, per_minute: int | None) -> Bucket | None:
        if per_minute is None:
            return None
        bucket = self._buckets.get((who, what))
        if bucket is None or bucket.per_minute != per_minute:
            if len(self._buckets) >= MOST_KEYS:
                self._forget_full()
            bucket = self._buckets[who, what] = Bucket(per_minute, self._clock)
        bucket.fill()
        return bucket

    def _forget_full(self) -> None:
        for key, bucket in list(self._buckets.items()):
            bucket.fill()
            if bucket.level >= bucket.per_minute:
                del self._buckets[key]


def too_many(what: str, wait: float, code: str) -> Refused:
    """429 and how long to wait."""
    seconds = max(1, math.ceil(wait))
    return Refused(
        429,
        f"the limit of {what} is reached; try again in {seconds} s",
        code=f"{code}_exceeded",
        headers={"retry-after": str(seconds)},
    )
