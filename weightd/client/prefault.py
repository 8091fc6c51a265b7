"""Page tables for a model's memory at once, in place of faults on its first use."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final, NamedTuple

import msgspec

from weightd.core.errors import Corruption, Exhausted, InvalidArgument, SizeMismatch, WeightdError
from weightd.kernel import advise

MADV_POPULATE_READ: Final = 22
"""linux/mman.h, since Linux 5.14."""
_EHWPOISON: Final = 133
"""asm-generic/errno.h; Python's errno lacks it before 3.14."""
PIECE: Final = 64 << 20
"""Bytes that one thread takes at a time."""
MOST_THREADS: Final = 8


class Prefault(msgspec.Struct, frozen=True):
    """`bytes` that are mapped now, in `pages` of the system's usual size, and the `seconds` that it took."""

    bytes: int
    pages: int
    seconds: float


class _Piece(NamedTuple):
    """`length` bytes of a map from `address`, that of a page; `view` is of those that were asked for."""

    address: int
    length: int
    view: memoryview

    @property
    def pages(self) -> int:
        return -(-self.length // mmap.PAGESIZE)


def prefault(views: Sequence[memoryview], threads: int | None = None) -> Prefault:
    """Map every page of `views`, each of one map, for reading. Without `threads`: as many as there are cores, up to 8.

    Raises InvalidArgument, Exhausted (no memory for page tables), SizeMismatch, Corruption (a page is damaged).
    """
    if threads is not None and threads < 1:
        raise InvalidArgument(f"{threads} threads can do nothing", remedy="Give 1 or more, or leave it out.")
    began = time.perf_counter()
    with ExitStack() as stack:
        pieces = [p for view in views if view.nbytes for p in _cut(stack.enter_context(_address(view)), view)]
        most = min(len(os.sched_getaffinity(0)), MOST_THREADS) if threads is None else threads
        _Crew(pieces).run(min(most, len(pieces)))
    mapped = sum(p.view.nbytes for p in pieces)
    return Prefault(mapped, sum(p.pages for p in pieces), time.perf_counter() - began)


class _Crew:
    """Threads that take pieces until none is left, or one of them fails; the caller's is one of them."""

    def __init__(self, pieces: list[_Piece]) -> None:
        self._pieces = iter(pieces)
        self._lock = threading.Lock()
        self._fault: WeightdError | None = None

    def run(self, threads: int) -> None:
        others = [threading.Thread(target=self._work, name="weightd-prefault") for _ in range(threads - 1)]
        try:
            for thread in others:
                thread.start()
            self._work()
        finally:
            self._stop()
            for thread in others:
                if thread.ident is not None:
                    thread.join()
        if self._fault is not None:
            raise self._fault

    def _work(self) -> None:
        while (piece := self._next()) is not None:
            try:
                _populate(piece)
            except WeightdError as error:
                self._fault = error
                self._stop()

    def _next(self) -> _Piece | None:
        with self._lock:
            return next(self._pieces, None)

    def _stop(self) -> None:
        with self._lock:
            self._pieces = iter(())


def _populate(piece: _Piece) -> None:
    try:
        advise(piece.address, piece.length, MADV_POPULATE_READ)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise _translated(error) from None
        touch(piece.view)


def touch(view: memoryview) -> None:
    """A byte of every page is read, for kernels that know no better; holds the interpreter's lock."""
    for at in range(0, view.nbytes, 1 << 20):
        bytes(view[at : at + (1 << 20) : mmap.PAGESIZE])
    view[-1]


def _translated(error: OSError) -> WeightdError:
    if error.errno == errno.EFAULT:
        return SizeMismatch("a segment has lost pages that it was promised to have", remedy="Acquire the model again.")
    if error.errno == _EHWPOISON:
        return Corruption("the memory of a segment is damaged", remedy="weightd verify, and look at the host's log.")
    return Exhausted(f"the kernel maps no more pages: {error.strerror}")


def _cut(address: int, view: memoryview) -> Iterator[_Piece]:
    """Beginning at pages: the map does, even where the file in it does not."""
    at = 0
    while at < view.nbytes:
        before = (address + at) % mmap.PAGESIZE
        length = min(PIECE - before, view.nbytes - at)
        yield _Piece(address + at - before, before + length, view[at : at + length])
        at += length


class _PyBuffer(ctypes.Structure):
    """Py_buffer, of Include/cpython's pybuffer.h: ctypes itself gives the address of writable memory only."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


@contextmanager
def _address(view: memoryview) -> Iterator[int]:
    """Of the first byte; the map stays meanwhile."""
    buffer = _PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(buffer), 0)
    try:
        yield buffer.buf or 0
    finally:
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
