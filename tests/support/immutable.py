"""Files and directories that even root cannot alter, as chattr(1) makes them: what a unlink or rename meets in a place
that was made read-only meanwhile."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

_GET, _SET, _IMMUTABLE = 0x80086601, 0x40086602, 0x10
"""FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IMMUTABLE_FL: ioctl_iflags(2)."""


@contextmanager
def immutable(*paths: Path) -> Iterator[None]:
    """Until the end of the `with`. Skips the test where that cannot be."""
    with ExitStack() as stack:
        for path in paths:
            fd = os.open(path, os.O_RDONLY)
            stack.callback(os.close, fd)
            _set(fd, path)
            stack.callback(_change, fd, _IMMUTABLE, False)
        yield


def _set(fd: int, path: Path) -> None:
    try:
        _change(fd, _IMMUTABLE, True)
    except OSError as e:
        if e.errno not in (errno.EPERM, errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        pytest.skip(f"{path} cannot be made immutable here: {e.strerror}")


def _change(fd: int, flag: int, on: bool) -> None:
    (flags,) = struct.unpack("i", fcntl.ioctl(fd, _GET, struct.pack("i", 0)))
    fcntl.ioctl(fd, _SET, struct.pack("i", flags | flag if on else flags & ~flag))
