"""Which transfers run: those that a worker waits for go before prefetches, which pause meanwhile.

Among refs that the same tenants see: an origin of one tenant may send as slowly as it likes, and keeps nobody else
from getting a place, nor from using it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from weightd.core.tenants import Scope
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
    """Two lanes of `count` transfers each: urgent flights never wait for prefetches to end. Beyond `count` there is one
    more in each for whatever set of tenants has none. On the event loop."""

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
            if not entry.admitted.done() and self._has_place(entry.flight):
                entry.admitted.set_result(None)
        hurry = {e.flight.tenants for e in self._entries if e.inside and e.flight.urgent}
        if any(e.flight.urgent for e in self._entries):
            self.calm.clear()
        else:
            self.calm.set()
        for entry in self._entries:
            if entry.flight.urgent or entry.flight.tenants not in hurry:
                entry.going.set()
            else:
                entry.going.clear()

    def _has_place(self, flight: Flight[Any]) -> bool:
        inside = self._inside(flight.urgent)
        return len(inside) < self._count or flight.tenants not in inside

    def _inside(self, urgent: bool) -> list[Scope]:
        """Who sees what runs in a lane."""
        return [e.flight.tenants for e in self._entries if e.inside and e.flight.urgent == urgent]
