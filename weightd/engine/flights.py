"""Single-flight: however many ask, the work is done once, and goes on while anyone waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Iterator
from typing import Any, Generic, TypeVar

from weightd.core.digest import Digest
from weightd.core.tenants import NOBODY, Scope
from weightd.engine.api import EventKind, Tier
from weightd.engine.tracker import Tracker

T = TypeVar("T")


class Flight(Generic[T]):
    """One piece of work in progress. `join` and `leave` in pairs: when the last one leaves, it is cancelled.

    `urgent`: a worker waits for it; see `weightd.engine.lanes`. `report` tells watchers what happens on the way.
    """

    task: asyncio.Task[T]

    def __init__(self) -> None:
        self.tracker = Tracker()
        self.ref = ""
        """For people."""
        self.tenants: Scope = NOBODY
        """Who may see that."""
        self.urgent = False
        self.report: Callable[[EventKind, str], None] = lambda kind, detail: None
        self.blobs: set[Digest] = set()
        """That it counts on: nothing drops them by policy meanwhile."""
        self.moved = dict.fromkeys(Tier, 0)
        """Bytes that came into each tier from the one below while it went on, by it or by another that it waited for;
        of what is fetched into both, NVMe is the one that counts."""
        self._interest = 0

    def join(self) -> None:
        self._interest += 1

    def leave(self) -> None:
        self._interest -= 1
        if self._interest == 0:
            self.task.cancel()

    def __repr__(self) -> str:
        return f"<Flight interest={self._interest} done={self.task.done()}>"


class Flights(Generic[T]):
    """Flights by key. A finished one is forgotten at once."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, Flight[T]] = {}
        # With those that everybody left and that still clean up, while another flies under their key.
        self._tasks: set[asyncio.Task[T]] = set()

    def get(self, key: Hashable, start: Callable[[Flight[T]], Coroutine[Any, Any, T]]) -> Flight[T]:
        """The flight under way for `key`, or a new one. The caller joins it before it awaits anything."""
        flight = self._flights.get(key)
        if flight is None or flight.task.cancelling():
            flight = self._flights[key] = Flight()
            flight.task = asyncio.get_running_loop().create_task(start(flight), name="flight")
            self._tasks.add(flight.task)
            flight.task.add_done_callback(lambda t: self._forget(key, t))
        return flight

    def _forget(self, key: Hashable, task: asyncio.Task[T]) -> None:
        self._tasks.discard(task)
        flight = self._flights.get(key)
        if flight is not None and flight.task is task:
            del self._flights[key]
        # Whoever waited has the error; one that everybody left has none to tell.
        if not task.cancelled():
            task.exception()

    def __iter__(self) -> Iterator[Flight[T]]:
        """Those under way, in the order in which they began."""
        return iter([f for f in self._flights.values() if not f.task.done()])

    def __len__(self) -> int:
        return len(self._flights)

    async def stop(self) -> None:
        """Cancel all, and wait until they ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
