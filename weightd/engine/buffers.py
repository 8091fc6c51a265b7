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
        self._segment.let_go(view)
        view.release()

    def close(self) -> None:
        """The segment owns the map."""


class SlabBuffers:
    """A fixed number of slabs, used again and again: memory does not grow with the file, nor with the number of files.

    Each has `size` bytes. A part that is larger, as one of a file that was begun otherwise may be, gets memory of its
    own.

    No deadlock: a receiver reserves memory before it takes a part, and keeps it while the part is tried again; parts
    are taken in the order of the file, and a part is hashed as soon as those before it are. So the first part of a
    file that is not yet hashed always has its memory.
    """

    def __init__(self, count: int, size: int) -> None:
        self._count, self._size = count, size
        self._slabs: Slabs | None = None
        self._large: list[mmap.mmap] = []
        self._spare: list[memoryview] = []
        self._free: list[memoryview] = []
        self._used: dict[int, tuple[memoryview, memoryview]] = {}
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
            slab = place = self._free.pop()
            if part.length > len(slab):
                place = self._larger(part.length)
            view = place[: part.length]
            self._used[id(view)] = (slab, place)
            return view

    def _larger(self, size: int) -> memoryview:
        """In place of a slab, for a part of a file that was begun with larger ones; never for another part, whose
        reader may be in another process."""
        for place in self._spare:
            if len(place) >= size:
                self._spare.remove(place)
                return place
        self._large.append(mmap.mmap(-1, footprint(size)))
        return memoryview(self._large[-1])

    def release(self, view: memoryview) -> None:
        with self._changed:
            slab, place = self._used.pop(id(view))
            view.release()
            self._free.append(slab)
            if place is not slab:
                self._spare.append(place)
            self._room += 1
            self._changed.notify()

    def close(self) -> None:
        slabs, self._slabs = self._slabs, None
        if slabs is not None:
            slabs.close()
        while self._spare:
            self._spare.pop().release()
        while self._large:
            self._large.pop().close()
