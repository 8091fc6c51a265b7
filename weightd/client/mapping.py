"""Segments into this process's memory."""

from __future__ import annotations

import errno
import mmap
import os
import sys
from typing import Any, Final, NamedTuple

import posix_ipc

from weightd.core.errors import (
    AccessDenied,
    ConfigError,
    Exhausted,
    LeaseEnded,
    PathInTheWay,
    SizeMismatch,
    WeightdError,
)

_MAP_NORESERVE: Final = 0x4000
"""Linux; a private map counts against no commit limit, as hardly any of its pages will ever be copied."""
_NO_DUPLICATE: Final[dict[str, Any]] = {"trackfd": False} if sys.version_info >= (3, 13) else {}
"""Before 3.13 every map keeps a descriptor of its own."""
_GROUP: Final = "Join the group of the daemon's socket."
_AGAIN: Final = "Acquire the model again."


class Place(NamedTuple):
    """Where a file's bytes begin. `directory`: where the segment is a file of; empty for POSIX shared memory."""

    segment: str
    offset: int = 0
    directory: str = ""


def map_shared(place: Place, length: int) -> memoryview:
    """`length` bytes of a segment, the very pages that every worker has; a write raises TypeError.

    Stays mapped for as long as anything refers to the view. Raises LeaseEnded (the segment is gone), AccessDenied,
    SizeMismatch, Exhausted; ConfigError where the directory of segments is not in this process's file system.
    """
    return _map(place, length, mmap.MAP_SHARED, mmap.PROT_READ)


def map_private(place: Place, length: int) -> memoryview:
    """As `map_shared`, but writable: a write goes to a page of this process's own, and reaches nobody else."""
    return _map(place, length, mmap.MAP_PRIVATE | _MAP_NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE)


def _map(place: Place, length: int, flags: int, prot: int) -> memoryview:
    if length == 0:
        empty = memoryview(bytearray())
        return empty if prot & mmap.PROT_WRITE else empty.toreadonly()
    fd = _open_file(place.directory, place.segment) if place.directory else _open(place.segment)
    try:
        _check_size(os.fstat(fd).st_size, place, length)
        before = place.offset % mmap.ALLOCATIONGRANULARITY  # mmap(2) begins at pages
        mapped = mmap.mmap(fd, before + length, flags=flags, prot=prot, offset=place.offset - before, **_NO_DUPLICATE)
    except OSError as error:
        raise Exhausted(f"{length} bytes of segment {place.segment} cannot be mapped: {error.strerror}") from None
    finally:
        os.close(fd)
    return memoryview(mapped)[before:]


def _open(segment: str) -> int:
    """Read-only; without a size, as posix_ipc would resize the segment to it."""
    try:
        return int(posix_ipc.SharedMemory(segment, flags=0, read_only=True).fd)
    except posix_ipc.ExistentialError:
        raise LeaseEnded(f"segment {segment} is gone: the daemon has ended or dropped it", remedy=_AGAIN) from None
    except posix_ipc.PermissionsError:
        raise AccessDenied(f"this user may not read segment {segment}", remedy=_GROUP) from None
    except OSError as error:
        raise Exhausted(f"segment {segment} cannot be opened: {error.strerror}") from None


def _open_file(directory: str, segment: str) -> int:
    """Read-only, and nothing else than a file of that directory."""
    name = segment.removeprefix("/")
    if "/" in name or name in ("", ".", ".."):
        raise PathInTheWay(f"{segment!r} is not the name of a segment", remedy="Update the daemon or client.")
    path = os.path.join(directory, name)
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise _not_opened(error, directory, path) from None


def _not_opened(error: OSError, directory: str, path: str) -> WeightdError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        if os.path.isdir(directory):
            return LeaseEnded(
                f"segment {path} is gone: the daemon has ended or dropped it, or keeps its segments elsewhere",
                remedy=f"{_AGAIN} WEIGHTD_SHM, or Client(shm=…), says where their directory is in this process.",
            )
        return ConfigError(
            "the daemon's directory of segments is not here",
            file=directory,
            remedy="Mount it into this container, read-only, and say where: WEIGHTD_SHM, or Client(shm=…).",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return AccessDenied(f"this user may not read segment {path}", remedy=_GROUP)
    if error.errno == errno.ELOOP:
        return PathInTheWay("a segment is not a symlink", file=path, remedy="Find who put one there.")
    return Exhausted(f"segment {path} cannot be opened: {error.strerror}")


def _check_size(size: int, place: Place, length: int) -> None:
    """Touching a page beyond the end would kill the process (SIGBUS)."""
    if size < place.offset + length or (place.offset == 0 and size != length):
        raise SizeMismatch(f"segment {place.segment} has {size} bytes, {place.offset + length} were promised")
