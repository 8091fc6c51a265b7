"""Blocking calls from the event loop: never on it, and never abandoned half done."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_own_thread(call: Callable[[], T], stop: Callable[[], None], name: str) -> T:
    """Run a long `call` in a thread of its own. When this coroutine is cancelled, `stop` is called and the thread's
    end is awaited before the cancellation goes on."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def body() -> None:
        result, error = None, None
        try:
            result = call()
        except BaseException as e:  # noqa: BLE001 - raised by the awaiting side
            error = e
        loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=body, name=name).start()
    return await finish(future, stop)


async def finish(future: asyncio.Future[T], stop: Callable[[], None] = lambda: None) -> T:
    """Wait for something that must not be left behind; a cancellation is raised after its end."""
    cancelled = False
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            cancelled = True
            stop()
    if cancelled:
        future.exception()
        raise asyncio.CancelledError
    return future.result()
