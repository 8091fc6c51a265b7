"""Shared memory by posix_ipc: one object in /dev/shm for one blob."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

import posix_ipc

from weightd.core.numa import Placement
from weightd.storage.places import Place
from weightd.storage.tmpfs import TmpfsSegment as PosixSegment
from weightd.storage.tmpfs_store import PREFIX, TmpfsStore

__all__ = ["PREFIX", "ROOT", "PosixSegment", "PosixSegmentStore"]

ROOT: Final = Path("/dev/shm")
"""Where Linux shows POSIX shared memory (shm_overview(7))."""


class ShmPlace(Place):
    """POSIX shared memory: what it makes has a name for shm_open(3)."""

    def create(self, name: str) -> int:
        try:
            # Size 0 here: posix_ipc would ftruncate, which allocates nothing.
            return int(posix_ipc.SharedMemory(f"/{name}", posix_ipc.O_CREX, mode=0o600).fd)
        except posix_ipc.PermissionsError as e:
            raise PermissionError(errno.EACCES, str(e)) from None
        except posix_ipc.ExistentialError as e:
            raise FileExistsError(errno.EEXIST, str(e)) from None


class PosixSegmentStore(TmpfsStore):
    """See `TmpfsStore`."""

    directory: Final = ""

    def __init__(self, owner: str, *, group: int | None = None, placement: Placement | None = None) -> None:
        super().__init__(ShmPlace(ROOT), owner, group=group, placement=placement)
