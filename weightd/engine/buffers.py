"""Where received bytes land before they are hashed and written."""

from __future__ import annotations

import mmap
import threading
from typing import Protocol

from weightd.core.parts import Part
from weightd.sources.protocols import Shared
from weightd.storage.pages import footprint
from weightd.storage.protocols import Segment
from weightd.storage.shared import Slabs


class Buffers(Protocol):
    """Memory for parts. A part's view is used by one receiver, then by the hasher and the writer, then released."""

    def shared(self, length: int) -> Shared | None:
        """In which the views of parts of up to `length` bytes lie, where other processes can map it."""
        ...

    def reserve(self, stop: threading.Event) -> bool:
        """Wait until there is memory for one more part, and claim it; False once `stop` is set."""
        ...

    def acquire(self, part: Part) -> memoryview:
        """`part.length` writable bytes at a page-aligned address, of what was reserved. Does not wait."""
        ...

    def release(self, view: memoryview) -> None:
        """The view is not used any more, nor what was reserved for it."""
        ...

    def close(self) -> None:
        """All views were released. Idempotent."""
        ...


class SegmentBuffers:
    """Parts stay where they are received: in the segment's own map."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment

    def shared(self, length: int) -> Shared | None:
        return self._segment.shared

    def reserve(self, stop: threading.Event) -> bool:
        return not stop.is_set()

    def acquire(self, part: Part) -> memoryview:
        self._segment.prepare(part.offset, part.length)
        return self._segment.view[part.offset : part.offset + part.length]

    def release(self, view: memoryview) -> None:
        view.release()

    def close(self) -> None:
        """The segment owns the map."""


class SlabBuffers:
    """A fixed number of slabs, used again and again: memory does not grow with the file, nor with the number of files.

    Each has `size` bytes until it is used for a part that is larger, as one of a file that was begun otherwise may be.

    No deadlock: a receiver reserves memory before it takes a part, and keeps it while the part is tried again; parts
    are taken in the order of the file, and a part is hashed as soon as those before it are. So the first part of a
    file that is not yet hashed always has its memory.
    """

    def __init__(self, count: int, size: int) -> None:
        self._count, self._size = count, size
        self._slabs: Slabs | None = None
        self._large: list[tuple[mmap.mmap, memoryview]] = []
        self._free: list[memoryview] = []
        self._used: dict[int, memoryview] = {}
        self._room = count
        self._changed = threading.Condition()

    def shared(self, length: int) -> Shared | None:
        with self._changed:
            return self._made().shared if length <= self._size else None

    def _made(self) -> Slabs:
        """By the first thread that needs them, never by the event loop."""
        if self._slabs is None:
            self._slabs = Slabs(self._count, footprint(max(self._size, 1)))
            self._free = list(self._slabs.views)
        return self._slabs

    def reserve(self, stop: threading.Event) -> bool:
        with self._changed:
            while not self._room and not stop.is_set():
                self._changed.wait(0.2)
            if stop.is_set():
                return False
            self._room -= 1
            return True

    def acquire(self, part: Part) -> memoryview:
        with self._changed:
            self._made()
            if part.length > len(self._free[-1]):
                self._enlarge(part.length)
            slab = self._free.pop()
            view = slab[: part.length]
            self._used[id(view)] = slab
            return view

    def _enlarge(self, size: int) -> None:
        large = mmap.mmap(-1, footprint(size))
        self._free[-1] = memoryview(large)
        self._large.append((large, self._free[-1]))

    def release(self, view: memoryview) -> None:
        with self._changed:
            slab = self._used.pop(id(view))
            view.release()
            self._free.append(slab)
            self._room += 1
            self._changed.notify()

    def close(self) -> None:
        slabs, self._slabs = self._slabs, None
        if slabs is not None:
            slabs.close()
        while self._large:
            large, view = self._large.pop()
            view.release()
            large.close()
