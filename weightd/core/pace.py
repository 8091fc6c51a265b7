"""How many requests one origin gets at a time: up while more of them bring more, half when it says "too many"."""

from __future__ import annotations

START = 4
"""Requests at a time to begin with: what browsers and download tools open without asking."""
PERIOD_S = 0.2
"""Over which a rate is measured."""
CLIMB_S = 0.02
"""Until a first gain is believed; while an origin is new, each moment with too few requests is lost."""
DOUBT_S = 0.4
"""So much longer it takes to believe that there is none: new requests bring nothing for some round trips."""
GAIN = 1.1
"""Twice the requests must bring at least so much more, or half of them were as good."""
REST_S = 10.0
"""Until more are tried again, after they brought nothing."""
BURST_S = 1.0
"""Refusals so close together are one: the requests of one moment are refused together."""


class HostPace:
    """Of one origin. `most` requests at a time; times are seconds of one monotonic clock. Not thread-safe."""

    def __init__(self, most: int, now: float) -> None:
        self._most = max(1, most)
        self.limit = min(self._most, START)
        self._not_before = now
        self._next_cut = now
        self._next_try = now
        self._climbing = True
        """Nothing is known yet but that more bring more."""
        self._started = False
        self._period = now
        self._moved = 0
        self._full = False
        self._before: tuple[int, float] | None = None
        """Limit and rate before more were tried."""

    def wait(self, running: int, now: float) -> float | None:
        """Seconds until another request may start beside `running` ones: 0 for now, None for when one of them ends."""
        self._full = self._full or running + 1 >= self.limit
        if now < self._not_before:
            return self._not_before - now
        return 0.0 if running < self.limit else None

    def throttled(self, now: float, retry_after: float) -> None:
        """The origin answered 429 or 503, and perhaps when it wants to be asked again (seconds)."""
        self._not_before = max(self._not_before, now + retry_after)
        if now >= self._next_cut:
            self.limit = max(1, self.limit // 2)
            self._next_cut = now + BURST_S + retry_after
            self._before, self._climbing = None, False
            self._next_try = now + REST_S + retry_after
            self._begin(now)

    def moved(self, count: int, now: float, running: int = 0) -> bool:
        """Bytes came, while `running` requests are under way; True when the limit may have changed."""
        self._full = self._full or running >= self.limit
        if self._climbing:
            return self._climb(count, now)
        self._moved += count
        elapsed = now - self._period
        if elapsed < PERIOD_S:
            return False
        full, rate = self._full, self._moved / elapsed
        self._begin(now)
        if full:
            self._judge(rate, now)
        return True

    def _climb(self, count: int, now: float) -> bool:
        """As soon as a step has brought more, the next one."""
        if not self._started:  # What is needed until the first bytes come says nothing.
            self._started, self._period = True, now
            return False
        self._moved += count
        elapsed = now - self._period
        if elapsed < CLIMB_S or not self._full:
            return False
        rate = self._moved / elapsed
        if self._before is not None and rate < self._before[1] * GAIN:
            if elapsed < DOUBT_S:
                return False
            self._climbing = False
        elif self.limit == self._most:
            self._climbing = False
        self._begin(now)
        self._judge(rate, now)
        return True

    def _begin(self, now: float) -> None:
        self._period, self._moved, self._full = now, 0, False

    def _judge(self, rate: float, now: float) -> None:
        if self._before is not None and rate < self._before[1] * GAIN:
            self.limit, self._before = self._before[0], None
            self._next_try = now + REST_S
        elif self.limit < self._most and now >= self._next_try:
            self._before = (self.limit, rate)
            self.limit = min(self._most, self.limit * 2)
        else:
            self._before = None
