"""The bandwidth limit that all transfers of a process share."""

from __future__ import annotations

import threading
import time

from weightd.core.bucket import TokenBucket


class Throttle:
    """At most `rate` bytes per second in all. Any thread."""

    def __init__(self, rate: float) -> None:
        self._bucket = TokenBucket(rate, time.monotonic())
        self._lock = threading.Lock()

    def window(self, most: int) -> int:
        """Bytes to move between two `pass_`."""
        return self._bucket.window(most)

    def limits(self) -> bool:
        """Whether it is what holds up those who move bytes."""
        with self._lock:
            return self._bucket.limits(time.monotonic())

    def pass_(self, count: int, stop: threading.Event) -> None:
        """Wait until `count` bytes may be moved, or `stop` is set."""
        with self._lock:
            wait = self._bucket.take(count, time.monotonic())
        if wait > 0:
            stop.wait(wait)
