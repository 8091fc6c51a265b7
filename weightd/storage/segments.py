"""Shared memory by posix_ipc: one object in /dev/shm for one blob."""

from __future__ import annotations

import errno
import mmap
import os
import re
import secrets
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import posix_ipc

from weightd.core.budget import human
from weightd.core.errors import AccessDenied, Corruption, NotFound, ShmFull, Unavailable
from weightd.core.lifecycle import SEGMENT, Lifecycle, SegmentState
from weightd.storage import pages
from weightd.storage.direct import REFUSED
from weightd.storage.shared import SharedMap

ROOT: Final = Path("/dev/shm")
"""Where Linux shows POSIX shared memory (shm_overview(7))."""
PREFIX: Final = "weightd"
SEALED_MODE: Final = 0o440
BLOCK: Final = 512
"""Bytes of what `st_blocks` counts (stat(2))."""


def _room() -> tuple[int, int]:
    """Free and total bytes of the file system below."""
    status = os.statvfs(ROOT)
    return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize


def shm_full(wanted: int) -> ShmFull:
    """The error to raise, with what is free now."""
    free, total = _room()
    return ShmFull(
        f"/dev/shm is full: {human(wanted)} wanted, {human(free)} free of {human(total)}",
        remedy="Free space in /dev/shm, enlarge it (mount -o remount,size=… /dev/shm) or lower shm.budget.",
    )


@contextmanager
def shm_errors(wanted: int) -> Iterator[None]:
    """Translates what the kernel says of full memory, or of rights."""
    try:
        yield
    except posix_ipc.PermissionsError as e:
        raise _refused(e) from None
    except OSError as e:
        if e.errno in REFUSED:
            raise _refused(e) from None
        # EFAULT is what populating says where a write would be SIGBUS.
        if e.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EFAULT, errno.EDQUOT):
            raise
        raise shm_full(wanted) from None


def _refused(reason: Exception) -> AccessDenied:
    return AccessDenied(
        f"no segment can be made in /dev/shm: {reason}",
        remedy="It must be writable, and weightd's user in the group that segments are published to.",
    )


class PosixSegment:
    """See `protocols.Segment`. Made by PosixSegmentStore.create."""

    def __init__(self, name: str, size: int, group: int | None) -> None:
        self.name, self.size = name, size
        self.huge_bytes = 0
        self._life = Lifecycle("segment", SEGMENT, SegmentState.CREATED)
        self._map: mmap.mmap | None = None
        self._fd = -1
        self._closing = threading.Lock()
        self._view = memoryview(bytearray())
        self._identity = (0, 0)
        if size:
            self._create(group)

    def _create(self, group: int | None) -> None:
        # Size 0 here: posix_ipc would ftruncate, which allocates nothing.
        self._fd = posix_ipc.SharedMemory(self.name, posix_ipc.O_CREX, mode=0o600).fd
        try:
            status = os.fstat(self._fd)
            self._identity = (status.st_dev, status.st_ino)
            if group is not None:
                os.fchown(self._fd, -1, group)
            os.ftruncate(self._fd, self.size)
            self._map = mmap.mmap(self._fd, self.size)
            self._mode = pages.huge_mode(ROOT)
            self._allocator = pages.Allocator(self._fd, self.size, self._map, self._mode)
            self._view = memoryview(self._map)
        except BaseException:
            self.unlink()
            raise

    @property
    def path(self) -> Path:
        return ROOT / self.name.removeprefix("/")

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
        with shm_errors(length):
            self._allocator.prepare(offset, length)

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
                self.huge_bytes = pages.pmd_mapped(self.path)
            self._unmap()
            if not self._is_ours():
                raise Unavailable(
                    f"{self.path} was removed by somebody else while it was filled",
                    remedy="Find what cleans /dev/shm (systemd does, unless RemoveIPC=no), and try again.",
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
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as e:
            raise NotFound(f"{self.path} is not there: {e.strerror}", remedy="Find what removes it.") from None
        try:
            status = os.fstat(fd)
            if (status.st_dev, status.st_ino) != self._identity:
                raise NotFound(f"{self.path} is another object now", remedy="Find what replaces it.")
            if status.st_size != self.size:
                raise Corruption(f"{self.path} has {status.st_size} bytes, not {self.size}")
            found = mmap.mmap(fd, self.size, prot=mmap.PROT_READ)
        finally:
            os.close(fd)
        with found, memoryview(found) as view:
            yield view

    def unlink(self) -> None:
        if self.state is SegmentState.UNLINKED:
            return
        # The name first: whatever still holds the map, nothing stays in /dev/shm.
        if self.size and self._is_ours():
            # Not posix_ipc's: it holds the interpreter's lock while the kernel frees the pages (0.15 s per GiB).
            self.path.unlink(missing_ok=True)
        self._life.to(SegmentState.UNLINKED)
        self._close()
        try:
            self._unmap()
        except BufferError:
            # A view of a thread or traceback that is about to end; the map goes with it.
            self._map = None

    def _is_ours(self) -> bool:
        try:
            status = self.path.stat(follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (status.st_dev, status.st_ino) == self._identity

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
        return f"<PosixSegment {self.name} {self.state.name} {self.size}>"


class PosixSegmentStore:
    """Segments named `/weightd-<owner>-<label>-<random>`.

    `owner` (letters and digits) tells one daemon's segments from another's on the same host. `group` is the numeric
    group that may read sealed segments; None keeps the process's own.
    """

    def __init__(self, owner: str, *, group: int | None = None) -> None:
        if not re.fullmatch(r"[A-Za-z0-9]{1,32}", owner):
            raise ValueError(f"owner {owner!r} is not letters and digits")
        self._prefix = f"{PREFIX}-{owner}-"
        self._group = group
        self._live: weakref.WeakSet[PosixSegment] = weakref.WeakSet()
        self._lock = threading.Lock()

    def create(self, label: str, size: int) -> PosixSegment:
        name = f"/{self._prefix}{label[:40]}-{secrets.token_hex(6)}" if size else ""
        self.check_room(size)
        with shm_errors(size):
            segment = PosixSegment(name, size, self._group)
        with self._lock:
            self._live.add(segment)
        return segment

    def check_room(self, size: int) -> None:
        if size > self.free():
            raise shm_full(size)

    def free(self) -> int:
        return _room()[0]

    def total(self) -> int:
        return _room()[1]

    def huge_bytes(self) -> int:
        with self._lock:
            live = list(self._live)
        return sum(s.huge_bytes for s in live if s.state is not SegmentState.UNLINKED)

    def drop_leftovers(self) -> int:
        dropped = 0
        for entry in os.scandir(ROOT):
            if entry.name.startswith(self._prefix) and entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                Path(entry.path).unlink()
                dropped += 1
        return dropped

    def __repr__(self) -> str:
        return f"<PosixSegmentStore {self._prefix}>"
