"""One gate for each origin, which all its readers pass: what one of them is told counts for all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from weightd.core.pace import HostPace
from weightd.sources.urls import Origin

PATIENCE_S = 30.0
"""After which a request goes ahead although as many as may are under way: one of those may be waiting for memory that
the one at the gate holds, and nothing may wait for ever."""
CHECK_S = 0.2
"""How soon one that waits sees that it was aborted, if nobody wakes it."""


class Gate:
    """Any thread. `enter` and `leave` in pairs."""

    def __init__(self, most: int) -> None:
        self._pace = HostPace(most, time.monotonic())
        self._changed = threading.Condition()
        self.running = 0

    def enter(self, aborted: Callable[[], bool]) -> bool:
        """Wait for the turn of another request; False, and nothing to leave, once `aborted`."""
        until = time.monotonic() + PATIENCE_S
        with self._changed:
            while not aborted():
                now = time.monotonic()
                wait = self._pace.wait(self.running, now)
                if wait == 0 or (wait is None and now >= until):
                    self.running += 1
                    return True
                self._changed.wait(CHECK_S if wait is None else min(wait, CHECK_S))
            return False

    def leave(self) -> None:
        with self._changed:
            self.running -= 1
            self._changed.notify()

    @property
    def limit(self) -> int:
        """Requests at a time, as far as it is known what the origin rewards."""
        with self._changed:
            return self._pace.limit

    def delay(self) -> float:
        """Seconds that the origin asked everybody to wait; for those who do not wait in a thread."""
        with self._changed:
            return self._pace.wait(0, time.monotonic()) or 0.0

    def moved(self, count: int) -> None:
        """Bytes came from this origin."""
        with self._changed:
            if self._pace.moved(count, time.monotonic(), self.running):
                self._changed.notify_all()

    def throttled(self, retry_after: float) -> None:
        """It answered 429 or 503."""
        with self._changed:
            self._pace.throttled(time.monotonic(), retry_after)

    def wake(self) -> None:
        """Somebody who waits may have been aborted."""
        with self._changed:
            self._changed.notify_all()


class Gates:
    """By origin. `most` requests at a time for each."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._gates: dict[Origin, Gate] = {}
        self._lock = threading.Lock()

    def of(self, origin: Origin) -> Gate:
        with self._lock:
            gate = self._gates.get(origin)
            if gate is None:
                gate = self._gates[origin] = Gate(self._most)
            return gate
