"""Memory of segments that were unlinked, until the last process has unmapped them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from weightd.core.budget import Budget
from weightd.core.errors import WeightdError
from weightd.core.lifecycle import SegmentState
from weightd.storage.pages import footprint
from weightd.storage.protocols import Residue, Segment

LOOK_S: Final = (0.02, 0.05, 0.1, 0.2, 0.5)
"""Seconds between two looks, the last one again and again: the kernel tells nobody of the end of a map."""


class Stuck:
    """A `Residue` of a segment that nobody is to be given any more, and that keeps its name: its removal was refused,
    and is tried again at each look."""

    known: Final = True

    def __init__(self, segment: Segment) -> None:
        self.size = footprint(segment.size)
        self._segment = segment
        self._residue: Residue | None = None

    def gone(self) -> bool:
        """Blocking."""
        if self._segment.state is SegmentState.SEALED:
            try:
                self._residue = self._segment.retire()
            except WeightdError:
                return False
        return self._residue is None or self._residue.gone()

    def close(self) -> None:
        if self._residue is not None:
            self._residue.close()


class Drains:
    """On the event loop; `io` runs a blocking call. They count in the budget as draining."""

    def __init__(self, budget: Budget, io: Callable[..., Awaitable[Any]]) -> None:
        self._budget, self._io = budget, io
        self._residues: list[Residue] = []
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._looks = 0

    def add(self, residues: Iterable[Residue]) -> None:
        """Of segments that were resident."""
        for residue in residues:
            self._budget.drain(residue.size)
            self._residues.append(residue)
        self._looks = 0
        if self._residues and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._run(), name="drains")

    def look(self) -> None:
        """Something ended that may have mapped one: soon again."""
        self._looks = 0

    async def change(self, seconds: float) -> bool:
        """Whether some of it became free within so many seconds."""
        if not self._residues:
            return False
        self.look()
        self._changed.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def _run(self) -> None:
        while self._residues:
            await asyncio.sleep(LOOK_S[min(self._looks, len(LOOK_S) - 1)])
            self._looks += 1
            looked = list(self._residues)
            gone = await self._io(lambda looked=looked: [r for r in looked if r.gone()])
            for residue in gone:
                self._residues.remove(residue)
                self._budget.drained(residue.size)
            if gone:
                self._changed.set()

    async def stop(self) -> None:
        """They are not asked any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for residue in self._residues:
            residue.close()

    def __len__(self) -> int:
        return len(self._residues)
