"""Blocking questions that may have no end, as to a network mount whose server is gone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def apart(call: Callable[..., T], *args: object) -> T:
    """In a thread of its own: one that is kept for ever takes none of those in which others ask. A caller who is
    cancelled leaves it behind, and so does the end of the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def body() -> None:
        result, error = None, None
        try:
            result = call(*args)
        except BaseException as e:  # noqa: BLE001 - raised by the awaiting side
            error = e
        with suppress(RuntimeError):  # The loop has ended.
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=body, name="weightd-ask", daemon=True).start()
    return await future
