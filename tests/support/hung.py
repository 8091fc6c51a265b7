"""A mount whose server never answers, as that of a network share that is gone."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_LIBC = ctypes.CDLL(None, use_errno=True)
_DETACH = 2
"""MNT_DETACH: umount2(2)."""


@contextmanager
def hung(place: Path) -> Iterator[Path]:
    """A FUSE file system at this directory, on which every call waits; at the end they all fail. Skips the test where
    nothing can be mounted."""
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as e:
        pytest.skip(f"no FUSE here: {e.strerror}")
    try:
        options = f"fd={fd},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()}".encode()
        if _LIBC.mount(b"hung", os.fsencode(place), b"fuse", 0, options):
            pytest.skip(f"nothing can be mounted here: {os.strerror(ctypes.get_errno())}")
        try:
            yield place
        finally:
            os.close(fd)
            fd = -1
            _LIBC.umount2(os.fsencode(place), _DETACH)
    finally:
        if fd >= 0:
            os.close(fd)
