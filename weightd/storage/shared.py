"""Memory that other processes may map, by a descriptor."""

from __future__ import annotations

import mmap
import os

from weightd.kernel import address_of


class SharedMap:
    """Implements `weightd.sources.protocols.Shared` for `mapping`, which maps all of `fd`, writable. Owns neither."""

    def __init__(self, fd: int, mapping: mmap.mmap) -> None:
        self.fd = fd
        self._size = len(mapping)
        self._address = address_of(mapping)

    def offset_of(self, view: memoryview) -> int:
        offset = address_of(view) - self._address
        if not 0 <= offset <= self._size - len(view):
            raise ValueError(f"{len(view)} bytes that are not of this memory")
        return offset


class Slabs:
    """`count` times `size` bytes, page-aligned, that `shared` processes may map too. `size` in whole pages."""

    def __init__(self, count: int, size: int) -> None:
        self._fd = os.memfd_create("weightd-slabs", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self._fd, count * size)
            self._map = mmap.mmap(self._fd, count * size)
        except BaseException:
            os.close(self._fd)
            raise
        self.shared = SharedMap(self._fd, self._map)
        with memoryview(self._map) as whole:
            self.views = [whole[i * size : (i + 1) * size] for i in range(count)]

    def close(self) -> None:
        """Nobody uses a view any more."""
        for view in self.views:
            view.release()
        self._map.close()
        os.close(self._fd)
