"""What receivers do, in which order, and how many files are open for it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from weightd.core import endgame
from weightd.core.parts import Part
from weightd.engine.jobs import FileJob
from weightd.engine.landing import Landing

LOOK_S = 0.1
"""How soon one that waits for a place sees that it was stopped."""


@dataclass(slots=True, eq=False)
class Task:
    """Parts of one request: one, or all of them where the origin has no ranges; none for an empty file.

    Of the first part that is left, the bytes from `begin` to `end` are its affair, those before `at` are here, and
    those before `reach` are being received. One receiver has it; any thread may `divide` it.
    """

    job: FileJob
    parts: deque[Part]
    landing: Landing | None = None
    """Of the first part; kept while it is tried again, because parts behind it wait for it with theirs."""
    begin: int = 0
    at: int = 0
    reach: int = 0
    end: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def land(self, view: memoryview) -> None:
        """Memory for the whole of the first part."""
        with self._lock:
            self.landing = Landing(view)
            self.begin = self.at = self.reach = 0
            self.end = self.parts[0].length

    @property
    def view(self) -> memoryview:
        """Of the whole of the first part."""
        if self.landing is None:
            raise AssertionError("a part without its memory")
        return self.landing.view

    @property
    def left(self) -> int:
        """Bytes that are still to be received. For the receiver alone."""
        behind = sum(p.length for p in islice(self.parts, 1, None))
        return behind + (self.end - self.at if self.landing else self.parts[0].length if self.parts else 0)

    def ask(self, most: int) -> int:
        """Bytes from `at` that are received next, up to `most`: from now on nobody takes them over. 0 at the end."""
        with self._lock:
            self.reach = min(self.end, self.at + most)
            return self.reach - self.at

    def forget(self) -> int:
        """All that came of the first part comes again; returns how much that is."""
        with self._lock:
            came, self.at = self.at - self.begin, self.begin
            return came

    def divide(self, kept: float) -> Task | None:
        """The rear of what is not being received yet, for another receiver, but for the share `kept`; None where there
        is too little of it."""
        with self._lock:
            border = endgame.border(self.reach, self.end, kept)
            if border is None or self.landing is None:
                return None
            self.landing.join()
            rear = Task(self.job, deque(self.parts), self.landing, border, border, border, self.end)
            self.end = border
            return rear


@dataclass(frozen=True, slots=True, eq=False)
class Pending:
    """A file whose turn has not come. `parts` is their number as far as it is known before: what is found on disk may
    have been begun with parts of another size. `open` blocks, and raises what making a place for the file raises.
    `head`: its first part says what the rest is, and is to come early."""

    parts: int
    ranges: bool
    open: Callable[[], FileJob]
    head: bool = False

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
    """Small files first; then the first parts of those with a `head`, of as many as there are places for; then `width`
    large files side by side, so that each of as many hashers has a file.

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
    begun = deque[deque[Task]]()
    for file in [f for f in large if f.head]:
        if not places.take_now():
            break
        large.remove(file)
        queue = _tasks(file.open())
        yield queue.popleft()
        if queue:
            begun.append(queue)
    while begun or large or turn:
        while begun and len(turn) < width:
            turn.append(begun.popleft())
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
