"""Blocking calls from the event loop: never on it, and never abandoned half done."""

from __future__ import annotations

import asyncio
import ctypes
import os
import platform
import threading
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

_IOPRIO_SET: Final = {"x86_64": 251, "aarch64": 30, "riscv64": 30}
"""Its system call, which libc has no function for, by machine."""
_IOPRIO_WHO_PROCESS: Final = 1
"""With the id 0: the calling thread."""
_IOPRIO_IDLE: Final = 3 << 13
"""linux/ioprio.h"""
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long
_LIBC.syscall.argtypes = [ctypes.c_long] * 4

BULK_NICE: Final = 5
"""Niceness of threads that move bytes: on a host without a free core the event loop runs first."""


def step_back() -> None:
    """The calling thread moves bytes: the event loop, and the workers of the host, go before it."""
    thread = threading.get_native_id()
    # Linux keeps niceness by thread (sched(7)). One that is nicer already stays so.
    if os.getpriority(os.PRIO_PROCESS, thread) < BULK_NICE:
        os.setpriority(os.PRIO_PROCESS, thread, BULK_NICE)


def reads_last() -> bool:
    """The calling thread's reads and writes of disks come after everybody else's (ioprio_set(2), class idle). False
    where the kernel does not let us, or is not known well enough.

    Honoured by the schedulers bfq and mq-deadline; with "none", usual for NVMe, a disk knows no order.
    """
    number = _IOPRIO_SET.get(platform.machine())
    return number is not None and _LIBC.syscall(number, _IOPRIO_WHO_PROCESS, 0, _IOPRIO_IDLE) == 0


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
