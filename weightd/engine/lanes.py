"""Which transfers run: those that a worker waits for go before prefetches, which pause meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from weightd.engine.flights import Flight


@dataclass(slots=True, eq=False)
class _Entry:
    flight: Flight[Any]
    admitted: asyncio.Future[None]
    going: threading.Event = field(default_factory=threading.Event)

    @property
    def inside(self) -> bool:
        return self.admitted.done() and not self.admitted.cancelled()


class Lanes:
    """Two lanes of `count` transfers each: urgent flights never wait for prefetches to end. On the event loop."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._entries: list[_Entry] = []
        self.calm = threading.Event()
        """Set while no worker waits for anything."""
        self.calm.set()

    @property
    def running(self) -> int:
        """Transfers that were admitted, paused ones among them."""
        return sum(e.inside for e in self._entries)

    @asynccontextmanager
    async def enter(self, flight: Flight[Any]) -> AsyncGenerator[threading.Event]:
        """Wait for a place. Yields an event that is set while the transfer may take further parts."""
        entry = _Entry(flight, asyncio.get_running_loop().create_future())
        self._entries.append(entry)
        try:
            self._update()
            await entry.admitted
            yield entry.going
        finally:
            self._entries.remove(entry)
            self._update()

    def urge(self, flight: Flight[Any]) -> None:
        """A worker waits for this flight from now on."""
        flight.urgent = True
        self._update()

    def _update(self) -> None:
        for entry in self._entries:
            if not entry.admitted.done() and self._inside(entry.flight.urgent) < self._count:
                entry.admitted.set_result(None)
        hurry = self._inside(urgent=True) > 0
        if any(e.flight.urgent for e in self._entries):
            self.calm.clear()
        else:
            self.calm.set()
        for entry in self._entries:
            if entry.flight.urgent or not hurry:
                entry.going.set()
            else:
                entry.going.clear()

    def _inside(self, urgent: bool) -> int:
        return sum(e.inside and e.flight.urgent == urgent for e in self._entries)
