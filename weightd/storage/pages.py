"""What the file system below shared memory gives: its page size mode, and how to allocate on it.

The way to allocate depends on the mount (measured, DESIGN §6): under `huge=advise` only MADV_HUGEPAGE with
MADV_POPULATE_WRITE gives huge pages; everywhere else posix_fallocate is the faster or the only safe way.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
from pathlib import Path
from typing import Final

from weightd.kernel import MADV_POPULATE_WRITE, address_of, advise

PAGE: Final = 4096
HUGE_PAGE: Final = 2 << 20
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")
"""What /proc/mounts writes for white space and backslashes (getmntent(3))."""


def mount_options(path: Path, mounts: str | None = None) -> tuple[str, list[str]]:
    """File system type and mount options of the mount that holds `path`; with `mounts`, by this text of /proc/mounts,
    and for a path without symlinks."""
    if mounts is None:
        text, path = os.fsdecode(Path("/proc/self/mounts").read_bytes()), Path(os.path.realpath(path))
    else:
        text = mounts
    best: tuple[int, str, list[str]] = (-1, "", [])
    for line in text.splitlines():
        _, point, kind, options, *_ = line.split(" ")
        point = _ESCAPED.sub(lambda m: chr(int(m[1], 8)), point)
        inside = str(path) == point or str(path).startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best[0]:
            best = (len(point), kind, options.split(","))
    return best[1], best[2]


def huge_mode(path: Path, mounts: str | None = None) -> str:
    """The tmpfs option `huge=`: "never" (the kernel's default), "always", "within_size" or "advise"."""
    kind, options = mount_options(path, mounts)
    if kind != "tmpfs":
        return "never"
    return next((o.removeprefix("huge=") for o in options if o.startswith("huge=")), "never")


class Allocator:
    """Backs the bytes of one mapped file before they are touched: OSError ENOSPC here, never SIGBUS later.

    Each part just before it is received, by the thread that receives it (docs/adr/0002): no call takes long, so that a
    fetch can be cancelled between two. On 4 KiB pages (`huge=never`) it is mapped as well: its pages are still in that
    thread's cache, and the receivers do it side by side.
    """

    def __init__(self, fd: int, size: int, mapping: mmap.mmap, mode: str) -> None:
        self._fd = fd
        self._mode = mode
        self._address = address_of(mapping)
        if mode == "advise":
            self._advise(0, size, mmap.MADV_HUGEPAGE)

    def prepare(self, offset: int, length: int) -> None:
        """`offset` is a multiple of PAGE. Any thread. Raises OSError."""
        if self._mode == "advise":
            self._advise(offset, length, MADV_POPULATE_WRITE)
            return
        os.posix_fallocate(self._fd, offset, length)
        if self._mode == "never":
            try:
                self._advise(offset, length, MADV_POPULATE_WRITE)
            except OSError as e:
                # Before Linux 5.14: the pages are there, only mapped one by one.
                if e.errno != errno.EINVAL:
                    raise

    def let_go(self, piece: memoryview) -> None:
        """Take 4 KiB pages out of this process's page tables; they stay in the file. It takes 0.1 s and more for each
        GiB, which whoever unmaps the whole spends in one go (docs/adr/0002). Huge ones take no time, and are counted
        yet."""
        if self._mode == "never" and len(piece):
            # While there is a piece of it the map cannot go, and nothing else be in its place.
            try:
                advise(address_of(piece), len(piece), mmap.MADV_DONTNEED)
            except OSError as e:
                if e.errno != errno.EINVAL:  # Locked pages (mlock) stay until they are unmapped.
                    raise

    def _advise(self, offset: int, length: int, advice: int) -> None:
        advise(self._address + offset, length, advice)


def huge_bytes(fd: int, size: int) -> int:
    """Bytes of a whole file that huge pages back. Touches one page in every 2 MiB: 4 ms per GiB that was written."""
    status = os.fstat(fd)
    with mmap.mmap(fd, size, prot=mmap.PROT_READ) as mapping, memoryview(mapping) as view:
        with view[::HUGE_PAGE] as touched:
            bytes(touched)
        return pmd_mapped(status.st_dev, status.st_ino)


def pmd_mapped(device: int, inode: int) -> int:
    """Bytes of this process's maps of a tmpfs file that huge pages back, from /proc/self/smaps."""
    which = [f"{os.major(device):02x}:{os.minor(device):02x}", str(inode)]
    total, ours = 0, False
    with Path("/proc/self/smaps").open() as smaps:
        for line in smaps:
            if line[0] in "0123456789abcdef":
                ours = line.split(maxsplit=5)[3:5] == which
            elif ours and line.startswith("ShmemPmdMapped:"):
                total += int(line.split()[1]) * 1024
    return total


def footprint(size: int) -> int:
    """Bytes that a file of `size` really takes: whole pages."""
    return -(-size // PAGE) * PAGE
