"""A worker that keeps what it mapped, as a program of its own, and how tests talk to it.

    python -m tests.e2e.worker SOCKET

Understands what `tests.isolation.worker` does, and this. Views of every file that it acquired stay until `forget`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.daemon.process import PATIENCE
from tests.isolation.host import WorkerProcess
from tests.isolation.users import environment
from tests.isolation.worker import Worker, main


class Keeper(Worker):
    """See the module."""

    def __init__(self, socket: str) -> None:
        super().__init__(socket)
        self.views: list[memoryview] = []
        self.files: list[io.FileIO] = []
        self.tensors: list[Any] = []

    def acquire(self, ref: str) -> dict[str, Any]:
        answer = super().acquire(ref)
        lease = self.leases[-1]
        self.views += [memoryview(lease.files[name].buffer) for name in sorted(lease.files)]
        return answer

    def sums(self) -> list[str]:
        """SHA-256 of each view, by the maps that were made first."""
        return [hashlib.sha256(view).hexdigest() for view in self.views]

    def states(self) -> list[str]:
        return [str(lease.state) for lease in self.leases]

    def errors(self) -> list[str]:
        return [type(lease.error).__name__ for lease in self.leases if lease.error is not None]

    def forget(self) -> None:
        """Let go of every map."""
        for view in self.views:
            view.release()
        self.views.clear()

    def cycle(self, ref: str, count: int) -> None:
        """Acquire, read a byte of each file, release; so many times."""
        for _ in range(count):
            with self.client.acquire(ref) as lease:
                assert all(bytes(file.buffer[:1]) for file in lease.files.values())

    def many(self, ref: str, count: int) -> None:
        """So many leases at once, and more than those that were there."""
        self.leases += [self.client.acquire(ref) for _ in range(count)]

    def open(self, path: str) -> str:
        """As a program that knows nothing of us; reads no more than the beginning."""
        self.files.append(io.FileIO(path))
        return os.readlink(f"/proc/self/fd/{self.files[-1].fileno()}")

    def rest(self) -> list[str]:
        """The SHA-256 of each file that is open, from its beginning."""
        for file in self.files:
            file.seek(0)
        return [hashlib.sha256(file.read()).hexdigest() for file in self.files]

    def safetensors(self, path: str) -> str:
        """SHA-256 of the tensor "t", by the library, which maps it; kept."""
        from safetensors import safe_open

        with safe_open(path, framework="np") as file:
            self.tensors.append(file.get_tensor("t"))
        return hashlib.sha256(self.tensors[-1].tobytes()).hexdigest()

    def fork(self) -> int:
        """A child, which answers from now on in place of this process, which lives on. Its pid."""
        if os.fork():
            while True:
                signal.pause()
        return os.getpid()


class Resident(WorkerProcess):
    """Runs until `workers` end it. `pid` of the worker itself, as this process sees it."""

    @property
    def pid(self) -> int:
        """Of a process that was started through others, the last of them."""
        pid = self.process.pid
        while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            pid = int(children[0])
        return pid

    def kill(self) -> None:
        """By SIGKILL; dead when this returns."""
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)


Start = Callable[..., Resident]


@contextlib.contextmanager
def workers() -> Iterator[Start]:
    """Starts workers: `start(socket, prefix=…, **environment)`. At the end they are killed."""
    with contextlib.ExitStack() as stack:

        def start(socket: Path, prefix: Sequence[str] = (), **env: str) -> Resident:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "tests.e2e.worker", str(socket)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd="/",
                env={**environment(), **env},
            )
            stack.callback(_end, process)
            return Resident(process)

        yield start


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGCONT)
    process.kill()
    process.communicate(timeout=PATIENCE)


def until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Asks again and again."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


if __name__ == "__main__":
    main(Keeper)
