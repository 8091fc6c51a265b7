"""Where segments are files: a directory of a tmpfs, and how an object in it is made, found and removed."""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from weightd.core.budget import human
from weightd.core.errors import AccessDenied, ShmFull
from weightd.storage.direct import REFUSED, room_of
from weightd.storage.pages import huge_mode


class Place:
    """A directory of a tmpfs. `fd`, where there is one, holds it: whatever its path comes to mean later, names stand
    for what is in this very directory. It is closed by `close`, or when nobody refers to the place any more, the last
    of its segments among them. Names have no "/"."""

    def __init__(self, root: Path, fd: int | None = None) -> None:
        self.root, self._fd = root, fd
        self._finish = None if fd is None else weakref.finalize(self, os.close, fd)

    def close(self) -> None:
        """From now on its path is what counts. Idempotent."""
        self._fd = None
        if self._finish is not None:
            self._finish()

    def create(self, name: str) -> int:
        """A descriptor of a new file of 0 bytes, mode 0600, to read and write. Raises FileExistsError."""
        return os.open(self._at(name), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self._fd)

    def open(self, name: str) -> int:
        """A descriptor to read; of what was seen to be a regular file, as a FIFO would wait. Raises OSError."""
        # Not O_NONBLOCK, which fails while somebody asks for a lease (see residue).
        return os.open(self._at(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)

    def stat(self, name: str) -> os.stat_result:
        """Raises OSError."""
        return os.stat(self._at(name), dir_fd=self._fd, follow_symlinks=False)

    def unlink(self, name: str) -> None:
        """Harmless where it is gone. Raises AccessDenied."""
        try:
            os.unlink(self._at(name), dir_fd=self._fd)
        except FileNotFoundError:
            pass
        except OSError as e:
            raise AccessDenied(
                f"segment {self.root / name} cannot be removed: {e.strerror}",
                remedy=f"{self.root} must stay writable for weightd's user, and what is in it removable (lsattr).",
            ) from None

    def names(self) -> list[str]:
        return os.listdir(self.root if self._fd is None else self._fd)

    def room(self) -> tuple[int, int]:
        """Free and total bytes of the file system."""
        return room_of(self.root if self._fd is None else self._fd)

    @property
    def huge(self) -> str:
        """As `pages.huge_mode`; a remount may change it."""
        return huge_mode(self.root)

    def full(self, wanted: int) -> ShmFull:
        """The error to raise, with what is free now."""
        free, total = self.room()
        return ShmFull(
            f"{self.root} is full: {human(wanted)} wanted, {human(free)} free of {human(total)}",
            remedy=f"Free space in {self.root}, enlarge it (mount -o remount,size=… {self.root}) or lower shm.budget.",
        )

    @contextmanager
    def errors(self, wanted: int) -> Iterator[None]:
        """Translates what the kernel says of full memory, or of rights."""
        try:
            yield
        except OSError as e:
            if e.errno in REFUSED:
                raise self._refused(e) from None
            # EFAULT is what populating says where a write would be SIGBUS.
            if e.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EFAULT, errno.EDQUOT):
                raise
            raise self.full(wanted) from None

    def _refused(self, reason: Exception) -> AccessDenied:
        return AccessDenied(
            f"no segment can be made in {self.root}: {reason}",
            remedy="It must be writable, and weightd's user in the group that segments are published to.",
        )

    def _at(self, name: str) -> str:
        return name if self._fd is not None else str(self.root / name)

    def __repr__(self) -> str:
        return f"<Place {self.root}>"
