"""What `weightd top` knows: the daemon's answers, one after another, and what follows from their differences."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Final, NamedTuple, Self

from weightd.client.client import Client
from weightd.client.types import CountersInfo, LeaseInfo, ModelInfo, StatusInfo
from weightd.core.errors import WeightdError

WINDOW_S: Final = 5.0
"""Over which rates are means."""
HISTORY: Final = 60
"""Samples that are drawn as a curve."""
NEWS_S: Final = 30.0
"""How long a restart is told."""


class Sample(NamedTuple):
    """One look at the daemon. `time` is monotonic, `wall` Unix time."""

    time: float
    wall: float
    status: StatusInfo
    models: list[ModelInfo]
    leases: list[LeaseInfo]


def take(client: Client) -> Sample:
    """Asks three times; what happens in between shows as a difference of moments, no more."""
    status, models, leases = client.status(), client.models(), client.leases()
    return Sample(time.monotonic(), time.time(), status, models, leases)


class Rates(NamedTuple):
    """Per second, means over WINDOW_S; None of each while there is nothing to compare."""

    fetched: float | None = None
    loaded: float | None = None
    acquires: float | None = None


class History:
    """The samples so far. A daemon that was started again begins anew, and is told for a while."""

    def __init__(self) -> None:
        self.last: Sample | None = None
        self.curve: deque[Rates] = deque(maxlen=HISTORY)
        self.fault = ""
        self._since: deque[tuple[float, CountersInfo]] = deque()
        self._restarted: tuple[float, str] | None = None

    def add(self, sample: Sample) -> None:
        """The next answer."""
        before, self.last, self.fault = self.last, sample, ""
        if before is not None and _another(before.status, sample.status):
            self._since.clear()
            self.curve.clear()
            self._restarted = sample.time, f"started again: process {before.status.pid} → {sample.status.pid}"
        self._since.append((sample.time, sample.status.counters))
        while len(self._since) > 2 and sample.time - self._since[0][0] > WINDOW_S:
            self._since.popleft()
        self.curve.append(self._between(-2))

    def fail(self, message: str) -> None:
        """No answer this time."""
        self.fault = message

    @property
    def rates(self) -> Rates:
        return self._between(0)

    def _between(self, first: int) -> Rates:
        if len(self._since) < 2:
            return Rates()
        (t0, a), (t1, b) = self._since[first], self._since[-1]
        took = max(t1 - t0, 1e-9)
        pairs = (
            (a.bytes_fetched, b.bytes_fetched),
            (a.bytes_loaded, b.bytes_loaded),
            (a.acquires, b.acquires),
        )
        return Rates(*(max(0, after - before) / took for before, after in pairs))

    def news(self, now: float) -> str:
        """What happened to the daemon lately; `now` is monotonic."""
        if self._restarted is None or now - self._restarted[0] > NEWS_S:
            return ""
        return self._restarted[1]


def _another(before: StatusInfo, after: StatusInfo) -> bool:
    return before.pid != after.pid or after.uptime < before.uptime


class Sampler:
    """Asks every `interval` seconds, in a thread of its own, so that the view answers to keys also when the daemon does
    not. `tell` is called there, after each change of `history`."""

    def __init__(self, client: Client, history: History, interval: float, tell: Callable[[], None]) -> None:
        self._client, self._history, self._interval, self._tell = client, history, interval, tell
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="weightd-top", daemon=True)
        self.lock = threading.Lock()
        """Held while `history` changes."""

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            try:
                sample = take(self._client)
            except WeightdError as error:
                with self.lock:
                    self._history.fail(error.message)
            else:
                with self.lock:
                    self._history.add(sample)
            self._tell()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._client.close()  # ends what it waits for
        self._thread.join()
