"""What is kept to be used again, and closed when it was not for too long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

IDLE_SECONDS = 10.0
"""Connections that were idle for longer are closed; servers close theirs after 15 s (Apache: 5 s) and more."""


class _Kept(NamedTuple, Generic[T]):
    thing: T
    until: float


class Idle(Generic[K, T]):
    """At most `most` things of each key. Any thread; `close` of a thing is called with no lock held.

    Those that are too old are closed when anything is given or taken. `timed`: also when nothing is, by a thread
    that lives only while something is kept.
    """

    def __init__(
        self,
        close: Callable[[T], None],
        most: int,
        *,
        timed: bool = True,
        seconds: float = IDLE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._close, self._most, self._timed, self._seconds, self._clock = close, most, timed, seconds, clock
        self._kept: dict[K, list[_Kept[T]]] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def give(self, key: K, thing: T) -> None:
        """To be kept; it is closed at once where there are enough."""
        with self._changed:
            several = self._kept.setdefault(key, [])
            kept = not self._closed and len(several) < self._most
            if kept:
                several.append(_Kept(thing, self._clock() + self._seconds))
                self._watch()
        if not kept:
            self._close(thing)
        self.prune()

    def take(self, key: K) -> T | None:
        """The one that was used last."""
        self.prune()
        with self._changed:
            several = self._kept.get(key)
            return several.pop().thing if several else None

    def drop(self, which: Callable[[T], bool]) -> None:
        """Close those."""
        self._close_all(self._remove(lambda kept: which(kept.thing)))

    def prune(self) -> None:
        """Close what is too old."""
        now = self._clock()
        self._close_all(self._remove(lambda kept: kept.until <= now))

    def close(self) -> None:
        """All of them now, and in future whatever is given. Idempotent."""
        with self._changed:
            self._closed = True
            thread = self._thread
            self._changed.notify_all()
        self._close_all(self._remove(lambda kept: True))
        if thread is not None:
            thread.join()

    def _close_all(self, things: list[T]) -> None:
        for thing in things:
            self._close(thing)

    def _remove(self, which: Callable[[_Kept[T]], bool]) -> list[T]:
        with self._changed:
            removed = [kept.thing for several in self._kept.values() for kept in several if which(kept)]
            if removed:
                left = {key: [k for k in several if not which(k)] for key, several in self._kept.items()}
                self._kept = {key: several for key, several in left.items() if several}
            return removed

    def _watch(self) -> None:
        if self._timed and self._thread is None:
            thread = threading.Thread(target=self._run, name="weightd-idle", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return  # No thread more may be started: the next one that is given tries again.
            self._thread = thread

    def _run(self) -> None:
        while self._wait():
            self.prune()

    def _wait(self) -> bool:
        """Until the oldest is too old; False when nothing is kept any more."""
        with self._changed:
            until = min((k.until for several in self._kept.values() for k in several), default=None)
            if until is None or self._closed:
                self._thread = None
                return False
            self._changed.wait(max(0.0, until - self._clock()))
            return True
