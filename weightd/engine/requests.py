"""Requests under way at origins: aborted together when a transfer stops, one by one when they are slow."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field

from weightd.core.slow import allowance, slow
from weightd.sources.protocols import Reader

WATCH_S = 1.0
"""Seconds between two looks at the rates of requests."""
ENDED = 8
"""Requests whose rates are remembered after their end."""
WORTH_S = 2.0
"""A request that would end sooner than this is left alone."""


@dataclass(slots=True, eq=False)
class Request:
    """`left` and `moved` in bytes, changed by its receiver alone. `replaced`: it was aborted for being slow."""

    reader: Reader
    left: int
    replaceable: bool
    moved: int = 0
    began: float = field(default_factory=time.monotonic)
    replaced: bool = False
    looks: list[int] = field(default_factory=list)
    """`moved` at the last looks."""

    def add(self, count: int) -> None:
        self.moved += count
        self.left -= count


class Requests:
    """Of one transfer of `parts` parts. Any thread."""

    def __init__(self, parts: int) -> None:
        self._lock = threading.Lock()
        self._readers: set[Reader] = set()
        self._running: set[Request] = set()
        self._stopped = False
        self._looked = time.monotonic()
        self._ended: deque[float] = deque(maxlen=ENDED)
        self.allowance = allowance(parts)

    def opened(self, reader: Reader) -> None:
        """From now on `abort` reaches it, at once if that was called before."""
        with self._lock:
            self._readers.add(reader)
            stopped = self._stopped
        if stopped:
            reader.abort()

    def closed(self, reader: Reader) -> None:
        with self._lock:
            self._readers.discard(reader)

    def begin(self, reader: Reader, length: int, *, replaceable: bool) -> Request:
        """A request for `length` bytes."""
        request = Request(reader, length, replaceable)
        with self._lock:
            self._running.add(request)
        return request

    def end(self, request: Request) -> None:
        """After this it is not aborted for being slow. Idempotent."""
        with self._lock:
            if request in self._running and request.moved:
                self._ended.append(request.moved / max(time.monotonic() - request.began, 1e-3))
            self._running.discard(request)

    def abort(self) -> None:
        """All readers: whatever blocks in them ends."""
        with self._lock:
            self._stopped = True
            readers = list(self._readers)
        for reader in readers:
            reader.abort()

    def replace_slow(self) -> None:
        """Abort the requests that are slower than a third of the median since two looks ago. Call about once in
        WATCH_S; the receiver goes on from where it was, on another connection."""
        now = time.monotonic()
        with self._lock:
            elapsed, self._looked = now - self._looked, now
            rates = {r: rate for r in self._running if (rate := _rate(r, elapsed)) is not None}
            for request in slow(rates, self._ended):
                if self.allowance and request.replaceable and request.left > rates[request] * WORTH_S:
                    self.allowance -= 1
                    request.replaced = True
                    self._running.discard(request)
                    request.reader.abort(slow=True)


def _rate(request: Request, elapsed: float) -> float | None:
    """Bytes per second over the last two periods of about `elapsed` seconds; None for a request that is younger."""
    request.looks.append(request.moved)
    if len(request.looks) < 3:
        return None
    first, _, last = request.looks = request.looks[-3:]
    return (last - first) / (2 * max(elapsed, 1e-3))
