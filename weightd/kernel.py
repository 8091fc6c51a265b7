"""What Linux has, and Python has not or only with its lock held: advice on memory and its place, the priority of one
thread, who still follows a link, who is at the other end of a descriptor that is not ours to own."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import socket
import struct
import threading
import time
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
_MEMBARRIER: Final = {"x86_64": 324, "aarch64": 283, "riscv64": 283}
"""Its system call, which libc has no function for, by machine."""
_MEMBARRIER_GLOBAL: Final = 1
"""linux/membarrier.h"""
WALK_S: Final = 0.05
"""For how long paths are taken to be followed where the kernel does not say: far longer than a process is usually not
run in between."""
MPOL_BIND: Final = 2
MPOL_INTERLEAVE: Final = 3
"""linux/mempolicy.h"""
_SO_DOMAIN: Final = 39
"""asm-generic/socket.h"""
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


def paths_followed() -> None:
    """Blocking, some 10 ms: afterwards nobody is on the way by a symlink that was changed before the call, so that what
    it led to can go.

    The kernel reads a link and looks up what it names in one RCU section (path-lookup in its documentation), and
    membarrier(2), MEMBARRIER_CMD_GLOBAL, waits for those under way. Where it is refused, with nohz_full or by a filter
    of system calls, WALK_S is waited instead. Who had to wait for a disk in between is missed by both.
    """
    number = _MEMBARRIER.get(platform.machine())
    if number is None or _LIBC.syscall(number, _MEMBARRIER_GLOBAL, 0, 0):
        time.sleep(WALK_S)


def accepted_from(descriptor: int, listener: bytes | None = None) -> tuple[int, int] | None:
    """(pid, uid) of the process that connected, where this is a Unix stream socket that was accepted from a listener
    with a name, which is `listener` unless that is None; None where it is anything else, or the process is in a PID
    namespace that this one does not see.

    Of a descriptor that somebody else owns and may close at any moment: socket.socket would own it too.
    """
    options = ((_SO_DOMAIN, socket.AF_UNIX), (socket.SO_TYPE, socket.SOCK_STREAM), (socket.SO_ACCEPTCONN, 0))
    try:
        if any(_option(descriptor, option, "i") != (wanted,) for option, wanted in options):
            return None
        pid, uid, _ = _option(descriptor, socket.SO_PEERCRED, "iII")
    except OSError:
        return None
    name = _name(descriptor)
    return (pid, uid) if pid > 0 and name and listener in (None, name.rstrip(b"\0")) else None


def _option(descriptor: int, option: int, form: str) -> tuple[int, ...]:
    value = ctypes.create_string_buffer(struct.calcsize(form))
    size = ctypes.c_uint32(len(value))
    if _LIBC.getsockopt(descriptor, socket.SOL_SOCKET, option, value, ctypes.byref(size)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return struct.unpack(form, value.raw)


def _name(descriptor: int) -> bytes:
    """An accepted socket has its listener's name; who connects, and both of a pair, have none (unix(7)): b""."""
    address = ctypes.create_string_buffer(128)
    size = ctypes.c_uint32(len(address))
    if _LIBC.getsockname(descriptor, address, ctypes.byref(size)):
        return b""
    return address.raw[struct.calcsize("H") : size.value]
