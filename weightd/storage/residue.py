"""Whether anybody still has a file open or mapped, found out by asking the kernel for a lease on it.

fcntl_locking(2), F_SETLEASE: a write lease is granted only when no other open file description of the inode exists. A
map counts as one for as long as it lasts, as it holds the description that it was made of; so does a description in any
other process, namespace or container. What does not count is a descriptor by O_PATH, which cannot be mapped, though it
keeps the memory. The lease is given back at once. Who opens the file in that moment waits for it (with O_NONBLOCK:
EWOULDBLOCK): for microseconds, some milliseconds on a host without a free core, and where we are stopped or killed in
between until that is over, or for `fs.lease-break-time` at most. The kernel tells us of it by a signal, SIGIO unless
another was chosen, which would end the process: we choose SIGURG, which does nothing where nobody handles it.

The kernel grants leases to the owner of the file, or with CAP_LEASE, and to nobody where `fs.leases-enable` is 0.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import threading
from typing import Final

_NOT_NOW: Final = (errno.EAGAIN, errno.ENOMEM)
"""Somebody else has it, or the kernel had no memory to find out: asked again later."""


def only_ours(fd: int) -> bool | None:
    """Whether `fd`, opened to read, is the only open description of its file. None when the kernel does not tell."""
    return _leased(fd, fcntl.F_WRLCK)


def nobody_writes(fd: int) -> bool | None:
    """Whether no description of the file of `fd` can write it, and no map. None when the kernel does not tell."""
    return _leased(fd, fcntl.F_RDLCK)


def _leased(fd: int, kind: int) -> bool | None:
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, kind)
    except OSError as e:
        return False if e.errno in _NOT_NOW else None
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True


class FileResidue:
    """See `protocols.Residue`. Takes `fd` over: what it still maps, opened to read before it was unlinked."""

    def __init__(self, fd: int, size: int) -> None:
        self.size = size
        self._known = fd >= 0
        self._fd = fd
        self._lock = threading.Lock()

    @property
    def known(self) -> bool:
        return self._known

    def gone(self) -> bool:
        with self._lock:
            if self._fd >= 0:
                alone = only_ours(self._fd)
                if alone is False:
                    return False
                self._known = alone is not None
                self._close()
            return True

    def close(self) -> None:
        with self._lock:
            self._close()

    def _close(self) -> None:
        """Ours is the last description of the file, where nobody maps it: this frees its memory."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __repr__(self) -> str:
        return f"<FileResidue {self.size} {'mapped' if self._fd >= 0 else 'closed'}>"
