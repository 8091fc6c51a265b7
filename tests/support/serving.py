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
    """The fake engine as a program, with its options. What a killed one leaves in shared memory, `close` removes."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.socket = directory / "s"
        self.pids: list[int] = []
        self.process = self._started(*options)

    def start(self, *options: str) -> None:
        """Another one, after the last has ended."""
        self._end_output()
        self.process = self._started(*options)

    def _started(self, *options: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fake_engine", self.socket, self.directory / "models", *options],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pids.append(process.pid)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    def line(self) -> str:
        """The next line of its output: waits."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def restart(self, *options: str) -> None:
        """After SIGKILL."""
        self.kill()
        self.start(*options)

    def begin_to_terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def terminate(self) -> int:
        """Drains; its exit status."""
        self.begin_to_terminate()
        return self.process.wait(20)

    def open_gate(self) -> None:
        """See --gate."""
        self.process.send_signal(signal.SIGUSR1)

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
