"""gRPC and fork do not mix: a call in a forked child hangs in about one of 20 cases.

So once any client of this process has opened gRPC, its forked children may map and read, and may not call; a child of
a process that has not opened it may do everything. What was opened must not be torn down in a child either, at its
exit or by its garbage collector: the locks may be held by threads that the child does not have.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Any

from weightd.core.errors import ForkedClient

_opened: weakref.WeakSet[Any] = weakref.WeakSet()
_was_opened = False
_is_child = False


def opening() -> None:
    """Called before anything of gRPC is opened. Raises ForkedClient in a child that may not."""
    global _was_opened
    check()
    _was_opened = True


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


os.register_at_fork(after_in_child=_in_child)
