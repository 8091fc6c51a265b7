"""Events to whoever watches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable

from weightd.core.errors import TooSlow
from weightd.core.refs import Ref
from weightd.core.tenants import NOBODY as NO_TENANT
from weightd.core.tenants import Scope
from weightd.engine.api import Event, EventKind, Holder

BACKLOG = 1000
"""Events that a watcher may be behind."""


class Events:
    """`emit` never waits: a watcher that is too slow is ended, the others are not."""

    def __init__(self, who: Callable[[Ref], Scope] = lambda ref: NO_TENANT) -> None:
        """`who` may see a ref."""
        self._who = who
        self._watchers: set[asyncio.Queue[Event | None]] = set()

    def emit(self, kind: EventKind, ref: Ref, revision: str, detail: str = "", holder: Holder | None = None) -> None:
        """Tell every watcher, now. `holder`: of the lease that it is about."""
        event = Event(kind, ref.shown, revision, time.time(), detail, self._who(ref), holder)
        for queue in list(self._watchers):
            if queue.qsize() > BACKLOG:
                self._watchers.discard(queue)
            else:
                queue.put_nowait(event)

    async def watch(self) -> AsyncGenerator[Event, None]:
        """Events from now on, until `close`. Raises TooSlow."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._watchers.add(queue)
        try:
            while queue in self._watchers or not queue.empty():
                event = await queue.get()
                if event is None:
                    return
                yield event
            raise TooSlow(f"more than {BACKLOG} events behind", remedy="Watch again, then list the models.")
        finally:
            self._watchers.discard(queue)

    def close(self) -> None:
        """Every watcher ends."""
        for queue in self._watchers:
            queue.put_nowait(None)
