"""An event loop of its own in a thread of its own: for a client library that blocks its loop now and then.

botocore parses megabytes of JSON for a client, and reads files and runs programs for credentials. The daemon's loop
does not wait for that, and receivers can ask without it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from weightd.core.errors import SourceUnavailable

T = TypeVar("T")
CHECK_S = 0.1
"""How soon one that waits sees that it was aborted."""


class LoopThread:
    """The thread starts at first use, and ends with `close`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """`work` there, awaited here; cancelled there when it is cancelled here. Once closed, SourceUnavailable."""
        try:
            return await asyncio.wrap_future(self._submit(work))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise _closing() from None
            raise

    def wait(self, work: Coroutine[Any, Any, T], aborted: Callable[[], bool]) -> T | None:
        """`work` there, waited for in this thread; None, and `work` cancelled, once `aborted`."""
        future = self._submit(work)
        while True:
            done, _ = concurrent.futures.wait([future], CHECK_S)
            if done:
                try:
                    return future.result()
                except concurrent.futures.CancelledError:
                    raise _closing() from None
            if aborted():
                future.cancel()
                return None

    def _submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        with self._lock:
            if self._closed:
                work.close()
                raise _closing()
            if self._loop is None:
                # Not the policy's: that of the daemon is uvloop's, which starts programs in the main thread only.
                self._loop = asyncio.SelectorEventLoop()
                self._thread = threading.Thread(target=self._serve, args=(self._loop,), name=self._name, daemon=True)
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    @staticmethod
    def _serve(loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()

    def close(self) -> None:
        """What runs there is cancelled. Blocks until the thread has ended; idempotent."""
        with self._lock:
            self._closed = True
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()


def _closing() -> SourceUnavailable:
    return SourceUnavailable("the source is closed", remedy="Ask again once the daemon runs.")
