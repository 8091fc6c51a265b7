"""What receivers do, in which order."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from weightd.core.parts import Part
from weightd.engine.jobs import FileJob


@dataclass(slots=True)
class Task:
    """Parts of one request: one, or all of them where the origin has no ranges."""

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


def order(jobs: list[FileJob], width: int) -> deque[Task]:
    """Small files first; then `width` large files side by side, so that each of as many hashers has a file."""
    tasks: deque[Task] = deque()
    large: list[deque[Task]] = []
    for job in sorted(jobs, key=lambda j: len(j.parts)):
        if job.ranges and len(job.parts) > 1:
            large.append(deque(Task(job, deque([p])) for p in job.parts))
        else:
            tasks.append(Task(job, deque(job.parts)))
    while large:
        turn, large = large[:width], large[width:]
        while turn:
            for queue in turn:
                tasks.append(queue.popleft())
            if any(not q for q in turn):
                turn = [q for q in turn if q]
                while large and len(turn) < width:
                    turn.append(large.pop(0))
    return tasks
