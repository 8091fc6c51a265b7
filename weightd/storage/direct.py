"""Writing and reading a file past the page cache, from any thread, at any length.

O_DIRECT wants address, offset and length aligned. Parts begin aligned (core.parts.ALIGN) and lie in page-aligned maps,
so only a file's last block is not: it goes through an aligned block of our own, and the file is cut to size at the end.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from weightd.core.budget import human
from weightd.core.errors import AccessDenied, Corruption, DiskFull, WeightdError
from weightd.core.parts import ALIGN

log = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
DAMAGE = {
    errno.EIO: "the disk reports an error",
    # What Linux makes of a sector that cannot be read, or whose protection data is wrong, when it is read past the page
    # cache (blk_errors in block/blk-core.c), and of metadata with a wrong checksum (ext4, xfs).
    errno.ENODATA: "the disk reports a sector that cannot be read",
    errno.EILSEQ: "the disk reports wrong protection data",
    errno.EBADMSG: "the file system reports a wrong checksum",
    errno.EUCLEAN: "the file system reports that it is damaged",
    errno.ELOOP: "a symlink stands in its place",
    errno.EISDIR: "a directory stands in its place",
    errno.ESPIPE: "a pipe stands in its place",
    errno.ENXIO: "a socket stands in its place",
}


@contextmanager
def disk_errors(directory: Path) -> Iterator[None]:
    """Translates "no space left" into DiskFull, and a refusal into AccessDenied."""
    try:
        yield
    except OSError as e:
        if e.errno in FULL:
            raise DiskFull(
                f"no space left below {directory}", remedy="Free space there, or point weightd at a larger file system."
            ) from None
        if e.errno in REFUSED:
            raise AccessDenied(
                f"{e.filename2 or e.filename or directory} may not be written: {e.strerror}",
                remedy="Name a directory that this user may write, or change its owner or mode.",
            ) from None
        raise


@contextmanager
def damage_errors(what: str) -> Iterator[None]:
    """Translates what a read says of lost bytes into Corruption."""
    try:
        yield
    except OSError as e:
        if e.errno not in DAMAGE:
            raise
        raise Corruption(f"{what} cannot be read: {DAMAGE[e.errno]}") from None


@contextmanager
def left_behind(path: Path) -> Iterator[None]:
    """What an earlier process left and cannot be removed keeps no start from what else it does: it is told, and tried
    again at the next."""
    try:
        yield
    except (WeightdError, OSError) as e:
        log.warning("%s is left over, and cannot be removed: %s", path, e)


def check_free(directory: Path, size: int) -> None:
    """Raises DiskFull unless the file system below `directory` has `size` bytes free for this user."""
    free = free_bytes(directory)
    if size > free:
        raise DiskFull(
            f"no space left below {directory}: {human(size)} wanted, {human(free)} free",
            remedy="Free space there, or point weightd at a larger file system.",
        )


def open_direct(path: Path, flags: int, mode: int = 0o600) -> int:
    """As os.open, with O_DIRECT where the file system has it (some, as older tmpfs, refuse it with EINVAL)."""
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags | os.O_DIRECT, mode)
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
        # With O_CREAT | O_EXCL the failed try may have made the file.
        if flags & os.O_EXCL:
            path.unlink(missing_ok=True)
        return os.open(path, flags, mode)


def pwrite_all(fd: int, offset: int, data: memoryview) -> None:
    """Write all of `data`; the last, partial block is padded with zeros to ALIGN bytes."""
    whole = len(data) - len(data) % ALIGN
    done = 0
    while done < whole:
        done += os.pwrite(fd, data[done:whole], offset + done)
        # A short write that ends inside a block: write that block again from its start.
        done -= done % ALIGN
    if whole < len(data):
        with mmap.mmap(-1, ALIGN) as block:
            block[: len(data) - whole] = data[whole:]
            if os.pwrite(fd, block, offset + whole) != ALIGN:
                raise OSError(errno.EIO, "short write of the last block")


def pread_all(fd: int, offset: int, view: memoryview, *, what: str) -> None:
    """Fill `view`. Raises Corruption when the file ends before it is full."""
    whole = len(view) - len(view) % ALIGN
    done = 0
    while done < whole:
        count = os.preadv(fd, [view[done:whole]], offset + done)
        if count == 0:
            raise _short(what, offset + done)
        done += count
        if done % ALIGN:
            done -= done % ALIGN
            if count < ALIGN:
                raise _short(what, offset + done + count)
    if whole < len(view):
        with mmap.mmap(-1, ALIGN) as block:
            rest = len(view) - whole
            if os.preadv(fd, [block], offset + whole) < rest:
                raise _short(what, offset + whole)
            view[whole:] = block[:rest]


def _short(what: str, at: int) -> Corruption:
    return Corruption(f"{what} ends at byte {at}, before its recorded size", remedy="It will be fetched again.")


def fsync_directory(path: Path) -> None:
    """Make renames and new names in `path` durable. Raises DiskFull, AccessDenied."""
    with disk_errors(path):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def room_of(place: Path | int) -> tuple[int, int]:
    """Bytes free for this user, and all bytes, of the file system below a path or descriptor. Raises OSError."""
    status = os.statvfs(place)
    return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize


def free_bytes(path: Path) -> int:
    """Free for this user on the file system below `path`."""
    return room_of(path)[0]
