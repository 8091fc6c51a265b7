"""Segments into this process's memory."""

from __future__ import annotations

import mmap
import os
import sys
from typing import Any, Final

import posix_ipc

from weightd.core.errors import AccessDenied, Exhausted, LeaseEnded, SizeMismatch

_MAP_NORESERVE: Final = 0x4000
"""Linux; a private map counts against no commit limit, as hardly any of its pages will ever be copied."""
_NO_DUPLICATE: Final[dict[str, Any]] = {"trackfd": False} if sys.version_info >= (3, 13) else {}
"""Before 3.13 every map keeps a descriptor of its own."""


def map_shared(segment: str, offset: int, length: int) -> memoryview:
    """`length` bytes of a segment from `offset`, the very pages that every worker has; a write raises TypeError.

    Stays mapped for as long as anything refers to the view. Raises LeaseEnded (the segment is gone), AccessDenied,
    SizeMismatch, Exhausted.
    """
    return _map(segment, offset, length, mmap.MAP_SHARED, mmap.PROT_READ)


def map_private(segment: str, offset: int, length: int) -> memoryview:
    """As `map_shared`, but writable: a write goes to a page of this process's own, and reaches nobody else."""
    return _map(segment, offset, length, mmap.MAP_PRIVATE | _MAP_NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE)


def _map(segment: str, offset: int, length: int, flags: int, prot: int) -> memoryview:
    if length == 0:
        empty = memoryview(bytearray())
        return empty if prot & mmap.PROT_WRITE else empty.toreadonly()
    fd = _open(segment)
    try:
        _check_size(os.fstat(fd).st_size, segment, offset, length)
        before = offset % mmap.ALLOCATIONGRANULARITY  # mmap(2) begins at pages
        mapped = mmap.mmap(fd, before + length, flags=flags, prot=prot, offset=offset - before, **_NO_DUPLICATE)
    except OSError as error:
        raise Exhausted(f"{length} bytes of segment {segment} cannot be mapped: {error.strerror}") from None
    finally:
        os.close(fd)
    return memoryview(mapped)[before:]


def _open(segment: str) -> int:
    """Read-only; without a size, as posix_ipc would resize the segment to it."""
    try:
        return int(posix_ipc.SharedMemory(segment, flags=0, read_only=True).fd)
    except posix_ipc.ExistentialError:
        raise LeaseEnded(
            f"segment {segment} is gone: the daemon has ended or dropped it", remedy="Acquire the model again."
        ) from None
    except posix_ipc.PermissionsError:
        raise AccessDenied(
            f"this user may not read segment {segment}", remedy="Join the group of the daemon's socket."
        ) from None
    except OSError as error:
        raise Exhausted(f"segment {segment} cannot be opened: {error.strerror}") from None


def _check_size(size: int, segment: str, offset: int, length: int) -> None:
    """Touching a page beyond the end would kill the process (SIGBUS)."""
    if size < offset + length or (offset == 0 and size != length):
        raise SizeMismatch(f"segment {segment} has {size} bytes, {offset + length} were promised")
