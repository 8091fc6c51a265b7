"""Threads for blocking calls of the whole engine, and one that alone uses the state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from weightd.core.errors import Draining
from weightd.threads import finish

T = TypeVar("T")

IO_THREADS: Final = 16
"""For blocking calls of all transfers together; so many files are made durable side by side."""


class Workers:
    """On the event loop. The end of a call is awaited even when its caller is cancelled."""

    def __init__(self) -> None:
        self._io = ThreadPoolExecutor(IO_THREADS, "weightd-io")
        self._db = ThreadPoolExecutor(1, "weightd-state")
        self._closed = False

    async def io(self, call: Callable[..., T], *args: object) -> T:
        """In any thread. Raises Draining after `close`."""
        return await self._run(self._io, call, *args)

    async def write(self, call: Callable[..., T], *args: object) -> T:
        """In the state's thread, in order. Raises Draining after `close`."""
        return await self._run(self._db, call, *args)

    async def _run(self, threads: ThreadPoolExecutor, call: Callable[..., T], *args: object) -> T:
        if self._closed:
            raise Draining("the daemon has stopped", remedy="Try again when it has been started again.")
        return await finish(asyncio.get_running_loop().run_in_executor(threads, call, *args))

    async def close(self, last: Callable[[], None]) -> None:
        """Once; `last` is the last call in the state's thread."""
        ending = asyncio.get_running_loop().run_in_executor(self._db, last)
        self._closed = True
        await finish(ending)
        self._io.shutdown()
        self._db.shutdown()
