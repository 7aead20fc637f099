"""Rate limits: how many requests and tokens a key may have in a minute, in this process.

A bucket holds a minute's worth and refills steadily. A request for text takes at once what it may come to
need, and gives back what it did not use at its end, so that the limit holds however many come together.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import overload

from foreword.serving.config import Limits
from foreword.serving.errors import Refused

REFUSALS_PER_MINUTE = 60
"""Refusals of one key that are answered at once; those beyond wait for their turn."""
LONGEST_WAIT = 10.0
"""Seconds that a refusal waits at most, however many there are."""
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
        self.add((now - self._filled) * self.per_minute / 60)
        self._filled = now

    def add(self, amount: float) -> None:
        """Put in so much, as far as it holds it."""
        self.level = min(self.per_minute, self.level + amount)

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
            if requests is not None and (wait := requests.seconds_until(1)) > 0:
                raise too_many(f"{limits.requests_per_minute} requests a minute", wait, "requests_per_minute")
            self._check_tokens(who, limits)
            if requests is not None:
                requests.level -= 1

    def check_tokens(self, who: str, limits: Limits) -> None:
        """See whether a request may still be read. Raises Refused: 429, others cost too much meanwhile."""
        with self._lock:
            self._check_tokens(who, limits)

    def refusal_wait(self, who: str) -> float:
        """Count a refusal; seconds that its answer is to wait.

        Whoever does not stop asking while it is refused would else keep the server busy with saying so.
        """
        with self._lock:
            bucket = self._bucket(who, "refusals", REFUSALS_PER_MINUTE)
            wait = min(bucket.seconds_until(1), LONGEST_WAIT)
            if wait < LONGEST_WAIT:
                bucket.level -= 1
            return wait

    def reserve(self, who: str, limits: Limits, tokens: int, *, read: int = 0) -> None:
        """Take the tokens that a request may come to need; `give_back` what it did not.

        Args:
            read: of these, so many are a prompt's that was read; they are counted where it is refused, too,
                before the wait is told, so that whoever waits so long is not refused again.

        Raises:
            Refused: 429, with the seconds to wait; or, where it needs more than a minute brings, without, and
                with the header by which OpenAI's clients do not try again.
        """
        with self._lock:
            bucket = self._bucket(who, "tokens", limits.tokens_per_minute)
            if bucket is None:
                return
            if tokens > bucket.per_minute:
                _charge(bucket, read)
                raise Refused(
                    429,
                    f"the request may need {tokens} tokens, prompt and answer together, and the limit is "
                    f"{bucket.per_minute} a minute; ask for fewer (max_tokens, n), or send a shorter prompt",
                    code="tokens_per_minute_exceeded",
                    headers={"x-should-retry": "false"},
                    counted=True,
                )
            if bucket.level < tokens:
                _charge(bucket, read)
                wait, what = bucket.seconds_until(tokens), f"{bucket.per_minute} tokens a minute"
                raise too_many(what, wait, "tokens_per_minute", counted=True)
            bucket.level -= tokens

    def give_back(self, who: str, limits: Limits, tokens: int) -> None:
        """Return reserved tokens that were not used."""
        with self._lock:
            bucket = self._bucket(who, "tokens", limits.tokens_per_minute)
            if bucket is not None:
                bucket.add(tokens)

    def charge_refused(self, who: str, limits: Limits, tokens: int) -> None:
        """Count the tokens of a request that was read and refused.

        They may bring the bucket below zero, by a minute's worth at most: nobody waits longer than that for
        a mistake that was made many times at once.
        """
        with self._lock:
            bucket = self._bucket(who, "tokens", limits.tokens_per_minute)
            if bucket is not None:
                _charge(bucket, tokens)

    def _check_tokens(self, who: str, limits: Limits) -> None:
        tokens = self._bucket(who, "tokens", limits.tokens_per_minute)
        if tokens is not None and (wait := tokens.seconds_until(0)) > 0:
            raise too_many(f"{limits.tokens_per_minute} tokens a minute", wait, "tokens_per_minute")

    @overload
    def _bucket(self, who: str, what: str, per_minute: int) -> Bucket: ...

    @overload
    def _bucket(self, who: str, what: str, per_minute: int | None) -> Bucket | None: ...

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


def _charge(bucket: Bucket, tokens: int) -> None:
    bucket.level = max(bucket.level - tokens, -bucket.per_minute)


def too_many(what: str, wait: float, code: str, *, counted: bool = False) -> Refused:
    """429 and how long to wait."""
    seconds = max(1, math.ceil(wait))
    return Refused(
        429,
        f"the limit of {what} is reached; try again in {seconds} s",
        code=f"{code}_exceeded",
        headers={"retry-after": str(seconds)},
        counted=counted,
    )
