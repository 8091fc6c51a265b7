"""Where a run keeps its bytes: a tmpfs of its own, in a mount namespace of its own, and directories on disk.

Whatever ends this process, the kernel drops the namespace with the last process in it, and with it what was mounted.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.machine import SHM, Unable, huge_mode, need

PAGES = {"4k": "never", "2m": "within_size"}
"""The mount option `huge=` by size of page (docs of the kernel, mm/transhuge)."""
SIZE = "95%"
"""Of the host's memory, for a tmpfs: it is a limit, nothing is taken before it is used."""
_CLONE_NEWNS = 0x20000
"""linux/sched.h"""
_LIBC = ctypes.CDLL(None, use_errno=True)


class Places(NamedTuple):
    """`shm`: the directory of a tmpfs for segments and for what peers write; `disk`: one on NVMe; `sockets`: one with a
    short path, as the kernel wants it. All are this run's alone. `huge`: the tmpfs has 2 MiB pages; `pages` says it for
    people."""

    shm: Path
    disk: Path
    sockets: Path
    huge: bool
    pages: str


def own_mounts() -> bool:
    """From now on what this thread and its children mount is seen by them alone; False without root."""
    if os.geteuid() != 0:
        return False
    if _LIBC.unshare(_CLONE_NEWNS):
        raise Unable(f"no mount namespace can be made: {os.strerror(ctypes.get_errno())}")
    _run("--make-rprivate", "/")
    return True


@contextlib.contextmanager
def places(disk: Path, pages: str | None) -> Iterator[Places]:
    """Directories that go with all that is in them. `pages` is "4k" or "2m", after `own_mounts`; None takes /dev/shm as
    it is."""
    with contextlib.ExitStack() as stack:
        own, sockets = stack.enter_context(_directory(disk)), stack.enter_context(_directory(None))
        if pages is None:
            mode, shm = huge_mode(), stack.enter_context(_directory(SHM))
        else:
            mode, shm = PAGES[pages], stack.enter_context(_tmpfs(own / "shm", PAGES[pages]))
        yield Places(shm, own, sockets, mode != "never", f"{'4 KiB' if mode == 'never' else '2 MiB'} (huge={mode})")


@contextlib.contextmanager
def _directory(parent: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="weightd-bench-", dir=parent) as path:
        yield Path(path)


@contextlib.contextmanager
def _tmpfs(point: Path, mode: str) -> Iterator[Path]:
    point.mkdir()
    _run("-t", "tmpfs", "-o", f"size={SIZE},mode=0755,huge={mode}", "weightd-bench", str(point))
    try:
        yield point
    finally:
        subprocess.run([need("umount", "mount"), "--lazy", str(point)], check=True)


def _run(*arguments: str) -> None:
    result = subprocess.run([need("mount", "mount"), *arguments], capture_output=True, text=True)
    if result.returncode:
        raise Unable(f"mount {' '.join(arguments)}: {result.stderr.strip()}")
