"""Reads a file as weightd's loaders do, and nothing else: no checksum, no daemon, one open file.

`python -m benchmarks.residency.reader ORDER` (an Order as JSON) prints seconds. Into private memory that was touched
before it is fio on pages of this size; into a fresh file of a tmpfs it shows what it costs to have its pages.
"""

from __future__ import annotations

import mmap
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

PART = 16 << 20
"""Bytes for which pages are asked at a time, as weightd does it."""


class Order(msgspec.Struct, frozen=True):
    """`threads` read `path` in pieces of `block` bytes. `fresh`: into a new file of this name, else into memory that is
    used again and again. `huge`: 2 MiB pages where memory is private; those of a file are as its mount has them."""

    path: str
    threads: int
    block: int
    fresh: str = ""
    huge: bool = False


Target = Callable[[int, int, int], memoryview]
"""Where a thread puts the bytes of an offset and length."""


def read_all(order: Order) -> float:
    """Seconds."""
    size = os.stat(order.path).st_size
    source = os.open(order.path, os.O_RDONLY | os.O_DIRECT)
    parts = iter(range(0, size, PART))
    target = fresh(order, size) if order.fresh else again(order)

    def work(thread: int) -> None:
        for offset in parts:
            view = target(thread, offset, min(PART, size - offset))
            for at in range(0, len(view), order.block):
                os.preadv(source, [view[at : at + order.block]], offset + at)
            view.release()

    try:
        begin = time.perf_counter()
        with ThreadPoolExecutor(order.threads) as pool:
            list(pool.map(work, range(order.threads)))
        return time.perf_counter() - begin
    finally:
        os.close(source)


def again(order: Order) -> Target:
    """The same private memory for every part of a thread, touched before."""
    maps = []
    for _ in range(order.threads):
        memory = mmap.mmap(-1, PART, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if order.huge:
            memory.madvise(mmap.MADV_HUGEPAGE)
        memory[:] = bytes(PART)
        maps.append(memory)
    # A read past the page cache is of whole blocks, and ends with the file.
    return lambda thread, offset, length: memoryview(maps[thread])[: -(-length // mmap.PAGESIZE) * mmap.PAGESIZE]


def fresh(order: Order, size: int) -> Target:
    """New pages of a tmpfs, allocated part by part as weightd does it on its mount."""
    from weightd.storage.pages import Allocator, footprint, huge_mode

    file = os.open(order.fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.ftruncate(file, footprint(size))
    memory = mmap.mmap(file, footprint(size))
    allocator = Allocator(file, footprint(size), memory, huge_mode(Path(order.fresh)))

    def place(thread: int, offset: int, length: int) -> memoryview:
        whole = footprint(length)
        allocator.prepare(offset, whole)
        return memoryview(memory)[offset : offset + whole]

    return place


if __name__ == "__main__":
    print(read_all(msgspec.json.decode(sys.argv[1], type=Order)))
