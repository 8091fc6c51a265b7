"""A daemon of the fake engine: in this loop, or as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.fake_engine import DEMO, REF, FakeEngine
from weightd.rpc.server import RpcServer, make_server


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A socket's path has at most 107 bytes; pytest's own directories may be longer."""
    path = Path(tempfile.mkdtemp(prefix="wd-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@dataclass
class Served:
    """The demo model is resident."""

    engine: FakeEngine
    server: RpcServer
    socket: Path


@contextlib.asynccontextmanager
async def served(directory: Path) -> AsyncIterator[Served]:
    engine = FakeEngine(directory / "models")
    engine.add(REF, DEMO)
    try:
        server = await make_server(engine, directory / "s")
        try:
            yield Served(engine, server, directory / "s")
        finally:
            await server.stop()
    finally:
        engine.close()


class DaemonProcess:
    """The fake engine as a program. What a killed one leaves in shared memory, `close` removes."""

    def __init__(self, directory: Path, mode: str = "0660") -> None:
        self.directory = directory
        self.socket = directory / "s"
        self.mode = mode
        self.pids: list[int] = []
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fake_engine", self.socket, self.directory / "models", self.mode],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pids.append(process.pid)
        self.process = process
        assert self.line() == "ready"
        return process

    def line(self) -> str:
        """The next line of its output: waits."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        self.kill()
        self._end_output()
        self._start()

    def terminate(self) -> int:
        """Drains; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        self._end_output()
        for pid in self.pids:
            for left in Path("/dev/shm").glob(f"weightd-test-{pid}-*"):
                left.unlink()

    def _end_output(self) -> None:
        assert self.process.stdout is not None
        self.process.stdout.close()


def run_script(
    script: str, *args: object, uid: int | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """A Python program in a fresh process, at most 60 s."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, args)], capture_output=True, text=True, timeout=60, user=uid
    )
    assert not check or done.returncode == 0, done.stderr
    return done


async def until(happened: object, message: str = "") -> None:
    """`happened()` becomes true, looked at every 5 ms for 10 s: for what nobody can announce."""
    assert callable(happened)
    async with asyncio.timeout(10):
        while not happened():  # noqa: ASYNC110 - nothing to await
            await asyncio.sleep(0.005)


def descriptors() -> int:
    """Open in this process."""
    return len(os.listdir("/proc/self/fd"))
