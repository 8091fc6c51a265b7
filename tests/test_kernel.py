"""Calls of the kernel that other threads do not wait for."""

from __future__ import annotations

import mmap
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from weightd.kernel import MADV_POPULATE_WRITE, address_of, advise, paths_followed
from weightd.sources.receiver_process import Window
from weightd.storage.shared import Slabs

SIZE = 16 << 20


@pytest.fixture
def alone() -> Iterator[None]:
    """No thread loses the interpreter's lock but by giving it up."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(3600)
    yield
    sys.setswitchinterval(before)


def populated(name: str) -> int:
    """Bytes of this process's maps of `name` that have pages."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line[0] in "0123456789abcdef":
            ours = name in line
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def test_other_threads_run_while_memory_is_populated(alone: None) -> None:
    go, ran = threading.Event(), [False]

    def other() -> None:
        go.wait()
        ran[0] = True

    thread = threading.Thread(target=other)
    thread.start()
    with mmap.mmap(-1, SIZE) as memory:
        address = address_of(memory)
        go.set()
        for _ in range(100):
            advise(address, SIZE, MADV_POPULATE_WRITE)
            advise(address, SIZE, mmap.MADV_DONTNEED)
            if ran[0]:
                break
        found = ran[0]
    thread.join()
    assert found


def test_what_cannot_be_advised_is_an_error() -> None:
    with mmap.mmap(-1, mmap.PAGESIZE) as memory:
        with pytest.raises(OSError, match="Invalid argument"):
            advise(address_of(memory) + 1, mmap.PAGESIZE, MADV_POPULATE_WRITE)


def test_a_window_has_its_pages_before_it_is_read_into() -> None:
    slabs = Slabs(1, SIZE)
    window = Window()
    try:
        before = populated("memfd:weightd-slabs")
        window.take(os.dup(slabs.shared.fd))
        with window.view(mmap.PAGESIZE + 1, 8 * mmap.PAGESIZE):
            assert populated("memfd:weightd-slabs") - before == 9 * mmap.PAGESIZE
    finally:
        window.drop()
        slabs.close()


def test_waiting_for_who_follows_a_link_holds_no_lock(alone: None) -> None:
    """Many at once: others run meanwhile, and all of them end."""
    ran = threading.Event()
    waiting = [threading.Thread(target=paths_followed) for _ in range(4)]
    for thread in waiting:
        thread.start()
    other = threading.Thread(target=ran.set)
    other.start()
    assert ran.wait(10)
    for thread in waiting:
        thread.join(10)
        assert not thread.is_alive()
