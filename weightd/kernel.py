"""What Linux has, and Python has not or only with its lock held: advice on memory and its place, the priority of one
thread."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import threading
from collections.abc import Iterable
from typing import Final

MADV_POPULATE_WRITE: Final = 23
"""linux/mman.h, since Linux 5.14: one call in place of a fault for each page."""
BULK_NICE: Final = 5
"""Niceness of threads that move bytes: on a host without a free core the event loop runs first."""

_IOPRIO_SET: Final = {"x86_64": 251, "aarch64": 30, "riscv64": 30}
"""Its system call, which libc has no function for, by machine."""
_IOPRIO_WHO_PROCESS: Final = 1
"""With the id 0: the calling thread."""
_IOPRIO_IDLE: Final = 3 << 13
"""linux/ioprio.h"""
_MBIND: Final = {"x86_64": 237, "aarch64": 235, "riscv64": 235}
"""Its system call, which only libnuma has a function for, by machine."""
_MASK_BITS: Final = 1024
"""Of a set of nodes: as many as Linux can be built for."""
MPOL_BIND: Final = 2
MPOL_INTERLEAVE: Final = 3
"""linux/mempolicy.h"""
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_LIBC.syscall.restype = ctypes.c_long
_LIBC.syscall.argtypes = [ctypes.c_long] * 4
_mbind = _LIBC["syscall"]
_mbind.restype = ctypes.c_long
_mbind.argtypes = [
    *(ctypes.c_long, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_int),
    *(ctypes.c_void_p, ctypes.c_ulong, ctypes.c_uint),
]


def address_of(memory: mmap.mmap | memoryview) -> int:
    """Of the first byte of writable memory, in this process."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def advise(address: int, length: int, advice: int) -> None:
    """madvise(2) for `length` bytes from `address`, the first of a page. Raises OSError.

    Not mmap.madvise, which holds the interpreter's lock for as long as the kernel needs.
    """
    if _LIBC.madvise(address, length, advice):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def set_memory_policy(address: int, length: int, mode: int, nodes: Iterable[int]) -> None:
    """mbind(2) for `length` bytes from `address`, the first of a page; `nodes` as NUMA nodes are numbered. Raises
    OSError, ENOSYS where the call's number is not known."""
    number = _MBIND.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    mask = (ctypes.c_ulong * (_MASK_BITS // (8 * ctypes.sizeof(ctypes.c_ulong))))()
    for node in nodes:
        word, bit = divmod(node, 8 * ctypes.sizeof(ctypes.c_ulong))
        mask[word] |= 1 << bit
    # The kernel counts one bit less than it is told.
    if _mbind(number, address, length, mode, ctypes.addressof(mask), _MASK_BITS + 1, 0):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def step_back() -> None:
    """The calling thread, and those that it starts, move bytes: the event loop, and the workers of the host, go before
    it."""
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
