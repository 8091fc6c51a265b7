"""Blocking calls from the event loop: never on it, and never abandoned half done but where they may have no end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def in_own_thread(call: Callable[[], T], stop: Callable[[], None], name: str) -> T:
    """Run a long `call` in a thread of its own. When this coroutine is cancelled, `stop` is called and the thread's
    end is awaited before the cancellation goes on."""
    return await finish(_begun(call, name, daemon=False), stop)


async def apart(call: Callable[..., T], *args: object) -> T:
    """Ask what may never answer, as a network mount whose server is gone, in a thread of its own: one that is kept for
    ever takes none of those in which others ask. A caller who is cancelled leaves it behind, and so does the end of the
    process."""
    return await _begun(lambda: call(*args), "weightd-ask", daemon=True)


def _begun(call: Callable[[], T], name: str, *, daemon: bool) -> asyncio.Future[T]:
    """What `call` returns or raises, in a thread that begins now."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return  # Whoever asked was cancelled.
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
        with suppress(RuntimeError):  # The loop has ended.
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=body, name=name, daemon=daemon).start()
    return future


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
