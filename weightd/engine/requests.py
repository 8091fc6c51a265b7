"""Requests under way at origins: aborted together when a transfer stops, one by one when they are slow."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from dataclasses import dataclass, field

from weightd.core.endgame import Running, border, last_to_end
from weightd.core.slow import allowance, slow
from weightd.engine.tasks import Task
from weightd.sources.protocols import Reader

WATCH_S = 1.0
"""Seconds between two looks at the rates of requests."""
ENDED = 8
"""Requests whose rates are remembered after their end."""
WORTH_S = 2.0
"""A request that would end sooner than this is left alone."""


@dataclass(slots=True, eq=False)
class Request:
    """`length` and `moved` in bytes, changed by its receiver alone. `replaced`: it was aborted for being slow. `task`:
    what it is for, where another may take over the rear of that."""

    reader: Reader
    length: int
    replaceable: bool
    task: Task | None = None
    moved: int = 0
    began: float = field(default_factory=time.monotonic)
    replaced: bool = False
    looks: list[int] = field(default_factory=list)
    """`moved` at the last looks."""

    @property
    def left(self) -> int:
        return self.length - self.moved if self.task is None else self.task.end - self.task.at


class Requests:
    """Of one transfer of `parts` parts, by up to `receivers`. Any thread."""

    def __init__(self, parts: int, receivers: int = 16) -> None:
        self._lock = threading.Lock()
        self._readers: set[Reader] = set()
        self._running: set[Request] = set()
        self._stopped = False
        self._looked = time.monotonic()
        self._ended: deque[float] = deque(maxlen=ENDED)
        self._first_byte = math.inf
        self.allowance = allowance(parts)
        # Each costs what is on its way on the connection that is cut, and gains nothing where the origin gives so much
        # to all connections together: then one that was divided would be the last again, and be divided again.
        self._divisions = receivers

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

    def begin(self, reader: Reader, length: int, *, replaceable: bool, task: Task | None = None) -> Request:
        """A request for `length` bytes."""
        request = Request(reader, length, replaceable, task)
        with self._lock:
            self._running.add(request)
        return request

    def came(self, request: Request, count: int) -> None:
        """Bytes of it. Its receiver alone."""
        if not request.moved:
            # The shortest is the round trip; others waited for their turn.
            self._first_byte = min(self._first_byte, time.monotonic() - request.began)
        request.moved += count

    def take_over(self, *, warm: bool) -> Task | None:
        """The rear of what the last one to end has yet to bring, if that is worth it, and its origin rewards one
        request more. `warm`: by a connection that has brought something."""
        now = time.monotonic()
        with self._lock:
            running = {r: _running(r, r.task, now) for r in self._running if r.task is not None and not r.replaced}
            last = (
                None
                if self._stopped or not self._divisions
                else last_to_end(running, self._ended, self._first_byte, warm=warm)
            )
            task = last[0].task if last else None
            if last is None or task is None or len(self._running) >= task.job.width():
                return None
            rear = task.divide(kept=last[1])
            self._divisions -= rear is not None
            return rear

    @property
    def divisible(self) -> bool:
        """Whether anything is under way of which some might still be taken over."""
        with self._lock:
            return self._divisions > 0 and any(
                r.task is not None and border(r.task.reach, r.task.end) is not None for r in self._running
            )

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


def _running(request: Request, task: Task, now: float) -> Running:
    age = max(now - request.began, 1e-3)
    return Running(task.reach, task.end, request.moved / age, age)


def _rate(request: Request, elapsed: float) -> float | None:
    """Bytes per second over the last two periods of about `elapsed` seconds; None for a request that is younger."""
    request.looks.append(request.moved)
    if len(request.looks) < 3:
        return None
    first, _, last = request.looks = request.looks[-3:]
    return (last - first) / (2 * max(elapsed, 1e-3))
