"""What receivers do, in which order, and how many files are open for it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from weightd.core.parts import Part
from weightd.engine.jobs import FileJob

LOOK_S = 0.1
"""How soon one that waits for a place sees that it was stopped."""


@dataclass(slots=True)
class Task:
    """Parts of one request: one, or all of them where the origin has no ranges; none for an empty file."""

    job: FileJob
    parts: deque[Part]
    view: memoryview | None = None
    """Of the first part that is left; kept while it is tried again, because parts behind it wait for it with theirs."""
    filled: int = 0
    """Bytes at the front of `view` that were received: another try goes on behind them."""

    @property
    def left(self) -> int:
        """Bytes that are still to be received."""
        return sum(p.length for p in self.parts) - self.filled


@dataclass(frozen=True, slots=True, eq=False)
class Pending:
    """A file whose turn has not come. `parts` is their number as far as it is known before: what is found on disk may
    have been begun with parts of another size. `open` blocks, and raises what making a place for the file raises."""

    parts: int
    ranges: bool
    open: Callable[[], FileJob]

    @classmethod
    def of(cls, job: FileJob) -> Pending:
        """One that is open."""
        return cls(len(job.parts), job.ranges, lambda: job)


class Places:
    """For `count` files that are open at a time. Any thread."""

    def __init__(self, count: int) -> None:
        self._free = threading.Semaphore(count)

    def take(self, stop: threading.Event) -> bool:
        """Wait for one; False once `stop` is set."""
        while not stop.is_set():
            if self._free.acquire(timeout=LOOK_S):
                return True
        return False

    def take_now(self) -> bool:
        """False when there is none."""
        return self._free.acquire(blocking=False)

    def give_back(self) -> None:
        """A file is done with, whatever became of it."""
        self._free.release()


def order(files: Iterable[Pending], width: int, places: Places, stop: threading.Event) -> Iterator[Task]:
    """Small files first; then `width` large files side by side, so that each of as many hashers has a file.

    Each file is opened when its turn comes, in a place of its own. No deadlock: who waits for a place has handed out
    all parts of every file that has one, so that they are completed without it.
    """
    ordered = sorted(files, key=lambda f: f.parts)
    large = deque(f for f in ordered if f.ranges and f.parts > 1)
    for file in ordered:
        if not (file.ranges and file.parts > 1):
            if not places.take(stop):
                return
            yield from _tasks(file.open())
    yield from _side_by_side(large, width, places, stop)


def _side_by_side(large: deque[Pending], width: int, places: Places, stop: threading.Event) -> Iterator[Task]:
    turn: list[deque[Task]] = []
    while large or turn:
        while large and len(turn) < width and (places.take_now() if turn else places.take(stop)):
            turn.append(_tasks(large.popleft().open()))
        if not turn:
            return
        for queue in turn:
            yield queue.popleft()
        turn = [q for q in turn if q]


def _tasks(job: FileJob) -> deque[Task]:
    if job.ranges and len(job.parts) > 1:
        return deque(Task(job, deque([p])) for p in job.parts)
    return deque([Task(job, deque(job.parts))])
