"""The fake engine, served in a thread, for the command line: what a real daemon needs long for is said by a test."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

from tests.support.fake_engine import FakeEngine
from tests.support.serving import Served, served, short_directory

T = TypeVar("T")


class Hosted:
    """`engine` belongs to the loop of its thread: change it through `run`, or while nobody asks."""

    def __init__(self, loop: asyncio.AbstractEventLoop, daemon: Served) -> None:
        self._loop = loop
        self.daemon = daemon
        self.engine: FakeEngine = daemon.engine
        self.socket = str(daemon.socket)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """In the thread of the daemon."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)


@contextlib.contextmanager
def hosted() -> Iterator[Hosted]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        with short_directory() as directory:
            daemon = served(directory)
            it = asyncio.run_coroutine_threadsafe(daemon.__aenter__(), loop).result(20)
            try:
                yield Hosted(loop, it)
            finally:
                asyncio.run_coroutine_threadsafe(daemon.__aexit__(None, None, None), loop).result(20)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
