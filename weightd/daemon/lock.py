"""One daemon per state directory, held by a lock that the kernel frees when its holder dies."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import time
from pathlib import Path
from typing import Final

from weightd.core.errors import AccessDenied, AlreadyRunning, PathInTheWay
from weightd.storage.direct import disk_errors

NAME: Final = "lock"
_LIMIT: Final = 4096


def make_state_dir(path: Path, gid: int | None = None) -> None:
    """The state directory with its parents, mode 0750, for `gid`. Raises AccessDenied, PathInTheWay, DiskFull."""
    try:
        with disk_errors(path.parent):
            if not path.is_dir():
                path.mkdir(mode=0o750, parents=True, exist_ok=True)
                if gid is not None:
                    os.chown(path, -1, gid)
    except OSError as e:
        if e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise _denied(path) from None
        raise PathInTheWay(
            f"the state directory {path} cannot be made: {e.strerror}",
            remedy="Move what stands there away, or set daemon.state_dir (--state-dir).",
        ) from None
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise _denied(path)


def _denied(path: Path) -> AccessDenied:
    return AccessDenied(
        f"the state directory {path} may not be written by this user",
        remedy="Change its owner, or set daemon.state_dir (--state-dir) to a directory of yours.",
    )


class StateLock:
    """Held from `acquire` to `release`, or to the end of the process.

    flock(2), not fcntl(2) locks: those are dropped as soon as anything in the process closes the file. The file
    stays: removing it would let two processes lock two files of one name.
    """

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / NAME
        self._fd = -1

    def acquire(self, socket: Path) -> None:
        """Raises AlreadyRunning that names the holder, PathInTheWay for anything but a plain file, DiskFull."""
        fd = _open(self.path)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _held(self.path, fd) from None
            note = {"pid": os.getpid(), "started": time.time(), "socket": str(socket)}
            with disk_errors(self.path.parent):
                os.ftruncate(fd, 0)
                os.pwrite(fd, json.dumps(note).encode() + b"\n", 0)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def release(self) -> None:
        """Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.ftruncate(fd, 0)
            os.close(fd)


def holder(state_dir: Path) -> int | None:
    """The process that holds the lock of a state directory, found without taking it even for a moment. None where the
    kernel names none: nobody holds it, or somebody beyond the walls of this container. Raises AccessDenied."""
    path = state_dir / NAME
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except PermissionError:
        raise AccessDenied(
            f"{path} may not be read by this user", remedy="Ask as root, or as weightd's user."
        ) from None
    except OSError:
        return None
    try:
        return _holder(fd)
    finally:
        os.close(fd)


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(path, flags, 0o640)
    except PermissionError:
        raise AccessDenied(
            f"the lock {path} belongs to another user", remedy="Run as that user, or use another state directory."
        ) from None
    except OSError as e:
        if e.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise _in_the_way(path) from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _in_the_way(path)
    return fd


def _in_the_way(path: Path) -> PathInTheWay:
    return PathInTheWay(f"{path} is not a plain file", remedy="Remove it: weightd keeps its lock there.")


def _held(path: Path, fd: int) -> AlreadyRunning:
    note = _note(fd)
    pid = _holder(fd) or note.get("pid")
    who = f"process {pid} ({_command(pid)})" if isinstance(pid, int) and pid > 0 else "another process"
    socket = note.get("socket")
    where = f", listening on {socket}" if isinstance(socket, str) else ""
    return AlreadyRunning(
        f"the state directory {path.parent} is in use by {who}{where}",
        remedy="Use that daemon, stop it first, or give this one another state directory (--state-dir).",
    )


def _note(fd: int) -> dict[str, object]:
    """What the holder wrote; {} when it is damaged."""
    try:
        note = json.loads(os.pread(fd, _LIMIT, 0))
    except ValueError:
        return {}
    return note if isinstance(note, dict) else {}


def _holder(fd: int) -> int | None:
    """The process that the kernel says holds the flock, from /proc/locks (proc_locks(5))."""
    status = os.fstat(fd)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        fields = line.split()
        if len(fields) >= 6 and fields[1] == "FLOCK" and fields[5] == device:
            return int(fields[4])
    return None


def _command(pid: int) -> str:
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return "of another user"
    return raw.replace(b"\0", b" ").decode("utf-8", "replace").strip()[:200] or "unknown command"
