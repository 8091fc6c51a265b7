"""A limit of bytes per second, as a token bucket."""

from __future__ import annotations

import math

BURST_S = 0.1
"""Seconds of the rate that may pass at once after a pause."""


class TokenBucket:
    """`rate` in bytes per second. Times are seconds of one monotonic clock. Not thread-safe."""

    def __init__(self, rate: float, now: float) -> None:
        if rate <= 0:
            raise ValueError(f"a rate of {rate} bytes per second")
        self.rate = rate
        self._tokens = self._most = rate * BURST_S
        self._at = now
        self._held_until = -math.inf

    def take(self, count: int, now: float) -> float:
        """Seconds to wait before `count` bytes are moved. They are taken now: later callers wait for them too."""
        self._tokens = min(self._most, self._tokens + (now - self._at) * self.rate)
        self._at = now
        self._tokens -= count
        wait = max(0.0, -self._tokens / self.rate)
        if wait:
            self._held_until = now + wait
        return wait

    def limits(self, now: float) -> bool:
        """Whether callers had to wait a moment ago: then all together get no more than `rate`, however they ask."""
        return now < self._held_until + BURST_S

    def window(self, most: int) -> int:
        """How many bytes to take at a time, at most `most`: a tenth of a second's, so that the flow stays even."""
        return max(1, min(most, int(self.rate * BURST_S)))
