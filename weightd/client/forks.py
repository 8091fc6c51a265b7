"""gRPC and fork do not mix: a call in a forked child hangs in about one of 20 cases.

So once any client of this process has opened gRPC, its forked children may map and read, and may not call; a child of
a process that has not opened it may do everything. What was opened must not be torn down in a child either, at its
exit or by its garbage collector: the locks may be held by threads that the child does not have.

A child has the descriptors of its parent's connections, too, and as long as it has them the daemon does not hear of the
parent's death. So they are closed in the child: a lease ends with the process that took it.
"""

from __future__ import annotations

import ctypes
import os
import socket
import stat
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

from weightd.core.errors import ForkedClient

_opened: weakref.WeakSet[Any] = weakref.WeakSet()
_was_opened = False
_is_child = False
_names: set[bytes] = set()
"""Of the daemons' sockets, without their directories, which may be mounted elsewhere there."""


def opening(path: Path) -> None:
    """Called before anything of gRPC is opened to the socket at `path`. Raises ForkedClient in a child that may not."""
    global _was_opened
    check()
    _was_opened = True
    if (name := os.fsencode(path.name)) not in _names:
        _names.update((name, os.path.basename(os.fsencode(os.path.realpath(path)))))


def check() -> None:
    """Raises ForkedClient where a call might hang."""
    if _is_child:
        raise ForkedClient(
            "this process was forked from one that had a connection to the daemon",
            remedy="Start workers by spawn, or make the first call after the fork; mapped tensors stay usable here.",
        )


def is_child() -> bool:
    """Of a process that had opened gRPC."""
    return _is_child


def keep(thing: Any) -> None:
    """Never destroy `thing` in a child."""
    _opened.add(thing)


def _in_child() -> None:
    global _is_child
    if not _was_opened:
        return
    _is_child = True
    for thing in _opened:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
    _let_go()


def _let_go() -> None:
    """The numbers stay taken, by what is of no use to anybody: gRPC believes that they are its own."""
    try:
        descriptors = [int(fd) for fd in os.listdir("/proc/self/fd")]
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # No /proc, or no descriptor left: the lease then ends with this child.
        return
    for descriptor in descriptors:
        with suppress(OSError):  # The directory's own, which is closed by now.
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode) and _leads_to_a_daemon(descriptor):
                os.dup2(nothing, descriptor, inheritable=False)
    os.close(nothing)


def _leads_to_a_daemon(descriptor: int) -> bool:
    with socket.socket(fileno=os.dup(descriptor)) as twin:
        if twin.family != socket.AF_UNIX:
            return False
        peer = twin.getpeername()
    return os.path.basename(os.fsencode(peer)) in _names


os.register_at_fork(after_in_child=_in_child)
