"""Processes that begin in milliseconds: each is forked from one that has imported everything, and has one thread.

For tests that kill many. The nursery is `python -m tests.support.nursery FD MODULE...`; `Nursery` starts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PATIENCE_S = 60.0
"""After which a child that should have answered or ended is called hung."""
HERE = Path(__file__).parents[2]


class Died(Exception):
    """The child ended before it answered."""


class Child:
    """Forked, and running a function as `function(connection, *arguments)`. Leaving the context kills it."""

    def __init__(self, nursery: Nursery, pid: int, connection: Connection) -> None:
        self.pid, self._nursery, self._connection = pid, nursery, connection
        self.status: int | None = None
        """Its exit status once it was waited for, -9 after SIGKILL."""

    def send(self, message: object) -> None:
        """Raises Died."""
        try:
            self._connection.send(message)
        except OSError:
            raise Died(f"child {self.pid}: {self.wait()}") from None

    def receive(self) -> Any:
        """Its next message. Raises Died where it ended without one."""
        if not self._connection.poll(PATIENCE_S):
            raise TimeoutError(f"child {self.pid} does not answer")
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            raise Died(f"child {self.pid}: {self.wait()}") from None

    def kill(self) -> int:
        """As the kernel does it."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def wait(self) -> int:
        """Until it has ended."""
        if self.status is None:
            self.status = self._nursery.wait(self.pid)
            self._connection.close()
        return self.status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()


class Nursery:
    """`modules` are imported once. Used by one thread; `with` ends it, its children must have ended before."""

    def __init__(self, *modules: str) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "tests.support.nursery", str(theirs.fileno()), *modules]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=HERE)
        self._socket = ours

    def start(self, function: Callable[..., Any], *arguments: object) -> Child:
        """`function` is found by its name, in a module of its own; where it returns a coroutine, a loop runs that."""
        ours, theirs = socket.socketpair()
        with theirs:
            order = pickle.dumps((function.__module__, function.__qualname__, arguments))
            socket.send_fds(self._socket, [order], [theirs.fileno()])
        return Child(self, self._answer(), Connection(ours.detach()))

    def wait(self, pid: int) -> int:
        """The exit status of a child that ends by itself, or was killed."""
        self._socket.send(pickle.dumps(pid))
        return self._answer()

    def _answer(self) -> int:
        readable, _, _ = select.select([self._socket], [], [], PATIENCE_S)
        data = self._socket.recv(1 << 10) if readable else b""
        if not data:
            raise AssertionError(f"the nursery does not answer: {self._process.poll()}")
        return int(data)

    def close(self) -> None:
        """Idempotent."""
        self._socket.close()
        self._process.wait(PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _serve(orders: socket.socket) -> None:
    """Until nobody is there to give any."""
    while True:
        data, fds, _, _ = socket.recv_fds(orders, 1 << 20, 1)
        if not data:
            return
        order = pickle.loads(data)
        if isinstance(order, int):
            _, status = os.waitpid(order, 0)
            orders.send(str(os.waitstatus_to_exitcode(status)).encode())
            continue
        pid = os.fork()
        if not pid:
            orders.close()
            _run(Connection(fds[0]), *order)
        os.close(fds[0])
        orders.send(str(pid).encode())


def _run(connection: Connection, module: str, name: str, arguments: tuple[object, ...]) -> None:
    """In the child, which ends here."""
    status = 1
    try:
        found = getattr(importlib.import_module(module), name)(connection, *arguments)
        if inspect.iscoroutine(found):
            asyncio.run(found)
        status = 0
    except BaseException:  # noqa: BLE001 - told, and the status says so
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    for module in sys.argv[2:]:
        importlib.import_module(module)
    _serve(socket.socket(fileno=int(sys.argv[1])))
