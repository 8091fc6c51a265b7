"""Where received bytes land before they are hashed and written."""

from __future__ import annotations

import threading
from typing import Protocol

from weightd.core.parts import Part
from weightd.sources.protocols import Shared
from weightd.storage.pages import footprint
from weightd.storage.protocols import Segment
from weightd.storage.shared import Slabs


class Buffers(Protocol):
    """Memory for parts. A part's view is used by one receiver, then by the hasher and the writer, then released."""

    @property
    def shared(self) -> Shared | None:
        """In which all views lie, where other processes can map it."""
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
        self.shared: Shared | None = segment.shared

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
    """A fixed number of equal slabs, used again and again: memory does not grow with the file.

    No deadlock: a receiver reserves memory before it takes a part, and keeps it while the part is tried again; parts
    are taken in the order of the file, and a part is hashed as soon as those before it are. So the first part of a
    file that is not yet hashed always has its memory.
    """

    def __init__(self, count: int, size: int) -> None:
        self._slabs: Slabs | None = Slabs(count, footprint(max(size, 1)))
        self.shared: Shared = self._slabs.shared
        self._free = list(self._slabs.views)
        self._used: dict[int, memoryview] = {}
        self._room = count
        self._changed = threading.Condition()

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
            slab = self._free.pop()
            view = slab[: part.length]
            self._used[id(view)] = slab
            return view

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
