"""One file of a tmpfs that holds one blob: what both segment stores are made of."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from weightd.core.errors import Corruption, NotFound, Unavailable
from weightd.core.lifecycle import SEGMENT, Lifecycle, SegmentState
from weightd.core.numa import Placement
from weightd.storage import nodes, pages
from weightd.storage.places import Place
from weightd.storage.protocols import SegmentIdentity
from weightd.storage.residue import FileResidue, nobody_writes, only_ours
from weightd.storage.shared import SharedMap

SEALED_MODE: Final = 0o440
BLOCK: Final = 512
"""Bytes of what `st_blocks` counts (stat(2))."""
SHORT: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What a process or a host has no more of; it says nothing of a segment."""
NO_OBJECT: Final = SegmentIdentity(0, 0)


class TmpfsSegment:
    """See `protocols.Segment`. Made by a store's `create`, or its `adopt`."""

    def __init__(
        self, place: Place, name: str, size: int, identity: SegmentIdentity, state: SegmentState = SegmentState.CREATED
    ) -> None:
        self.name, self.size = name, size
        self.huge_bytes = 0
        self._place, self._identity = place, identity
        self._life = Lifecycle("segment", SEGMENT, state)
        self._map: mmap.mmap | None = None
        self._fd = -1
        self._placement: Placement | None = None
        self._closing = threading.Lock()
        self._asking = threading.Lock()
        self._view = memoryview(bytearray())

    @classmethod
    def create(cls, place: Place, name: str, size: int, group: int, placement: Placement | None = None) -> TmpfsSegment:
        """Raises as `Place.create`, OSError, or ConfigError for `placement`; then nothing is left."""
        if not size:
            return cls(place, "", 0, NO_OBJECT)
        fd = place.create(name)
        segment = cls(place, f"/{name}", size, _identity_of(os.fstat(fd)))
        segment._fd, segment._placement = fd, placement
        try:
            segment._prepare_file(group)
        except BaseException:
            segment.unlink()
            raise
        return segment

    def _prepare_file(self, group: int) -> None:
        if os.fstat(self._fd).st_gid != group:
            os.fchown(self._fd, -1, group)
        os.ftruncate(self._fd, self.size)
        self._map = mmap.mmap(self._fd, self.size)
        if self._placement is not None:
            nodes.place(self._map, self._placement)
        self._mode = self._place.huge
        self._allocator = pages.Allocator(self._fd, self.size, self._map, self._mode)
        self._view = memoryview(self._map)

    @property
    def path(self) -> Path:
        return self._place.root / self._file

    @property
    def _file(self) -> str:
        return self.name.removeprefix("/")

    @property
    def identity(self) -> SegmentIdentity:
        return self._identity

    @property
    def state(self) -> SegmentState:
        return self._life.state

    @property
    def view(self) -> memoryview:
        if self.state is not SegmentState.CREATED:
            raise AssertionError(f"{self!r} is not writable")
        return self._view

    @property
    def shared(self) -> SharedMap | None:
        if self.state is not SegmentState.CREATED:
            raise AssertionError(f"{self!r} is not writable")
        return SharedMap(self._fd, self._map) if self._map is not None else None

    def prepare(self, offset: int, length: int) -> None:
        nodes.check_room(self._placement, length)
        with self._place.errors(length):
            self._allocator.prepare(offset, length)

    def let_go(self, piece: memoryview) -> None:
        self._allocator.let_go(piece)

    @property
    def unbacked(self) -> int:
        with self._closing:
            if self._fd < 0:  # Sealed, or given up.
                return 0
            # Pages may be larger than footprint() counts (huge=).
            return max(0, pages.footprint(self.size) - os.fstat(self._fd).st_blocks * BLOCK)

    def seal(self) -> None:
        if self.size and self.state is SegmentState.CREATED:
            # Modes do not stop maps that exist, and ours is the only writable one: it goes before anyone can open.
            if self._mode != "never":
                self.huge_bytes = pages.pmd_mapped(*self._identity)
            self._unmap()
            if not self._is_ours():
                raise Unavailable(
                    f"{self.path} was removed by somebody else while it was filled",
                    remedy=f"Find what cleans {self._place.root} (systemd cleans /dev/shm, unless RemoveIPC=no), and "
                    "try again.",
                )
            # Not by name: that may be another object by now.
            os.fchmod(self._fd, SEALED_MODE)
            self._close()
        self._life.to(SegmentState.SEALED)

    @contextmanager
    def opened(self) -> Iterator[memoryview]:
        if not self.size:
            yield memoryview(b"")
            return
        try:
            fd = self._reopen()
        except OSError as e:
            raise self._not_opened(e) from None
        try:
            if (size := os.fstat(fd).st_size) != self.size:
                raise Corruption(f"{self.path} has {size} bytes, not {self.size}")
            found = mmap.mmap(fd, self.size, prot=mmap.PROT_READ)
        except OSError as e:
            raise self._not_opened(e) from None
        finally:
            os.close(fd)
        with found, memoryview(found) as view:
            yield view

    def _not_opened(self, error: OSError) -> NotFound | Unavailable:
        if error.errno in SHORT:
            return Unavailable(
                f"{self.path} cannot be opened now: {error.strerror}",
                remedy="Raise the limits of the process (LimitNOFILE=, vm.max_map_count), and try again.",
            )
        return NotFound(f"{self.path} is not there: {error.strerror}", remedy="Find what removes it.")

    def mapped(self) -> bool | None:
        if not self.size:
            return False
        if self.state is not SegmentState.SEALED:
            return None
        # Two at the same time would each see the other.
        with self._asking:
            try:
                fd = self._reopen()
            except OSError:
                return None
            try:
                alone = only_ours(fd)
            finally:
                os.close(fd)
        return None if alone is None else not alone

    def unlink(self) -> None:
        if self.state is SegmentState.UNLINKED:
            return
        # The name first: whatever still holds the map, nothing stays in the directory.
        if self.size and self._is_ours():
            # Not posix_ipc's: it holds the interpreter's lock while the kernel frees the pages (0.15 s per GiB).
            self._place.unlink(self._file)
        self._life.to(SegmentState.UNLINKED)
        self._close()
        try:
            self._unmap()
        except BufferError:
            # A view of a thread or traceback that is about to end; the map goes with it.
            self._map = None

    def retire(self) -> FileResidue | None:
        if self.state is not SegmentState.SEALED or not self.size:
            self.unlink()
            return None
        try:
            fd = self._reopen()
        except FileNotFoundError:
            self.unlink()
            return None
        except OSError:  # No descriptor is left: nothing can be asked, and it goes all the same.
            fd = -1
        residue = FileResidue(fd, pages.footprint(self.size))
        try:
            self.unlink()
            return None if residue.gone() and residue.known else residue
        except BaseException:
            residue.close()
            raise

    def _reopen(self) -> int:
        """To read. Raises OSError, FileNotFoundError where the name is that of another object."""
        if _identity_of(self._place.stat(self._file)) == self._identity:
            fd = self._place.open(self._file)
            if _identity_of(os.fstat(fd)) == self._identity:
                return fd
            os.close(fd)
        raise FileNotFoundError(errno.ENOENT, "another object has its name")

    def _is_ours(self) -> bool:
        try:
            return _identity_of(self._place.stat(self._file)) == self._identity
        except FileNotFoundError:
            return False
        except OSError as e:
            raise Unavailable(
                f"{self.path} cannot be looked at: {e.strerror}",
                remedy=f"{self._place.root} must stay open to weightd's user.",
            ) from None

    def _unmap(self) -> None:
        self._view.release()
        if self._map is not None:
            self._map.close()
            self._map = None

    def _close(self) -> None:
        with self._closing:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)

    def __repr__(self) -> str:
        return f"<Segment {self.name} {self.state.name} {self.size}>"


def adopted(place: Place, name: str, size: int, identity: SegmentIdentity, group: int) -> TmpfsSegment | None:
    """What an earlier process SEALED under this `name` without a "/"; None where anything about it is another."""
    try:
        if not _as_sealed(place.stat(name), size, identity, group):
            return None
        fd = place.open(name)
    except OSError:
        return None
    try:
        # A process of this owner that still writes, a receiver that was not stopped, would be one too many.
        if not _as_sealed(os.fstat(fd), size, identity, group) or nobody_writes(fd) is False:
            return None
        segment = TmpfsSegment(place, f"/{name}", size, identity, SegmentState.SEALED)
        if place.huge != "never":
            segment.huge_bytes = pages.huge_bytes(fd, size)
        return segment
    finally:
        os.close(fd)


def _as_sealed(status: os.stat_result, size: int, identity: SegmentIdentity, group: int) -> bool:
    """Whole, and as `seal` leaves it. A page that is not there would read as zeros."""
    return (
        _identity_of(status) == identity
        and status.st_mode == stat.S_IFREG | SEALED_MODE
        and (status.st_uid, status.st_gid, status.st_nlink) == (os.geteuid(), group, 1)
        and status.st_size == size
        and status.st_blocks * BLOCK >= pages.footprint(size)
    )


def _identity_of(status: os.stat_result) -> SegmentIdentity:
    return SegmentIdentity(status.st_dev, status.st_ino)
