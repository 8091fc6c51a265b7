"""A program that tries to alter, or to reach, what it should not: one process for each attempt.

    python -m tests.isolation.attempts      reads lines "attempt path pid", answers each with "attempt result"

The result is "ok" where the kernel let it happen, else the name of the errno, or of the signal that ended the attempt.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
LIBC.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
PAGE: Final = mmap.PAGESIZE
MAP_FAILED: Final = ctypes.c_void_p(-1).value
MADV_REMOVE: Final = 9
PUNCH_HOLE: Final = 0x02 | 0x01
"""FALLOC_FL_PUNCH_HOLE, which takes KEEP_SIZE."""
CLONE_NEWUSER: Final = 0x10000000
F_SETLEASE: Final = 1024


def _check(result: int) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


@contextmanager
def reading(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _map(fd: int, prot: int) -> int:
    address = LIBC.mmap(None, PAGE, prot, mmap.MAP_SHARED, fd, 0)
    if address == MAP_FAILED:
        _check(-1)
    return int(address)


@contextmanager
def mapped(path: str) -> Iterator[int]:
    """The address of its first page, shared, read-only."""
    with reading(path) as fd:
        yield _map(fd, mmap.PROT_READ)


def open_read(path: str, pid: int) -> None:
    with reading(path) as fd:
        os.read(fd, 1)


def open_write(path: str, pid: int) -> None:
    os.close(os.open(path, os.O_RDWR))


def map_write(path: str, pid: int) -> None:
    with reading(path) as fd:
        ctypes.memset(_map(fd, mmap.PROT_READ | mmap.PROT_WRITE), 0, 1)


def protect_later(path: str, pid: int) -> None:
    with mapped(path) as address:
        _check(LIBC.mprotect(address, PAGE, mmap.PROT_READ | mmap.PROT_WRITE))
        ctypes.memset(address, 0, 1)


def store(path: str, pid: int) -> None:
    """Without asking anybody."""
    with mapped(path) as address:
        ctypes.memset(address, 0, 1)


def own_memory(path: str, pid: int) -> None:
    """/proc/self/mem writes where the page tables would not let us (FOLL_FORCE), but for shared maps."""
    with mapped(path) as address:
        fd = os.open("/proc/self/mem", os.O_RDWR)
        os.pwrite(fd, b"\0", address)


def reopen(path: str, pid: int) -> None:
    with reading(path) as fd:
        os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDWR))


def truncate_handle(path: str, pid: int) -> None:
    with reading(path) as fd:
        os.ftruncate(fd, 0)


def truncate(path: str, pid: int) -> None:
    os.truncate(path, 0)


def punch(path: str, pid: int) -> None:
    with reading(path) as fd:
        _check(LIBC.fallocate(fd, PUNCH_HOLE, 0, PAGE))


def advise_away(path: str, pid: int) -> None:
    with mapped(path) as address:
        _check(LIBC.madvise(address, PAGE, MADV_REMOVE))


def unlink(path: str, pid: int) -> None:
    os.unlink(path)


def rename(path: str, pid: int) -> None:
    os.rename(path, path + ".moved")
    os.rename(path + ".moved", path)


def replace(path: str, pid: int) -> None:
    """A file of ours under its name."""
    mine = f"{path}.{os.getpid()}"
    os.close(os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    try:
        os.rename(mine, path)
    except OSError:
        os.unlink(mine)
        raise


def hard_link(path: str, pid: int) -> None:
    """Keeps its memory after it was unlinked, as a map does."""
    os.link(path, path + ".link")
    os.unlink(path + ".link")


def change_mode(path: str, pid: int) -> None:
    os.chmod(path, 0o660)


def change_owner(path: str, pid: int) -> None:
    os.chown(path, os.geteuid(), -1)


def change_acl(path: str, pid: int) -> None:
    os.setxattr(path, "system.posix_acl_access", bytes.fromhex("02000000" + "0100060000000000" + "0400060000000000"
                                                               + "2000060000000000"))  # fmt: skip


def lease(path: str, pid: int) -> None:
    """Whoever holds one is asked before others may open the file to write, or to truncate."""
    with reading(path) as fd:
        fcntl.fcntl(fd, F_SETLEASE, fcntl.F_RDLCK)


def namespace(path: str, pid: int) -> None:
    """As root of a user namespace of one's own, on hosts that let everybody have one."""
    LIBC.unshare(CLONE_NEWUSER)
    os.close(os.open(path, os.O_RDWR))


def daemon_memory(path: str, pid: int) -> None:
    os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR))


def daemon_descriptors(path: str, pid: int) -> None:
    os.readlink(f"/proc/{pid}/fd/0")


def kill(path: str, pid: int) -> None:
    os.kill(pid, 0)


ATTEMPTS: Final[dict[str, Callable[[str, int], None]]] = {
    f.__name__: f
    for f in (
        open_read,
        open_write,
        map_write,
        protect_later,
        store,
        own_memory,
        reopen,
        truncate_handle,
        truncate,
        punch,
        advise_away,
        unlink,
        rename,
        replace,
        hard_link,
        change_mode,
        change_owner,
        change_acl,
        lease,
        namespace,
        daemon_memory,
        daemon_descriptors,
        kill,
    )
}


def attempt(name: str, path: str, pid: int) -> str:
    """In a process of its own."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            ATTEMPTS[name](path, pid)
            result = "ok"
        except OSError as e:
            result = errno.errorcode[e.errno or 0]
        os.write(write_end, result.encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as answer:
        result = answer.read()
    _, status = os.waitpid(child, 0)
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else result


def main() -> None:
    for line in sys.stdin:
        name, path, pid = line.split()
        print(name, attempt(name, path, int(pid)), flush=True)


if __name__ == "__main__":
    main()
