"""Child processes that end with us, whatever happens."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any

PR_SET_PDEATHSIG = 1
"""linux/prctl.h: the signal that a process gets when its parent dies."""
PATIENCE = 120.0
"""Seconds to wait for an answer; importing torch from a cold disk takes half a minute."""
_LIBC = ctypes.CDLL(None)


class DemoError(Exception):
    """A check failed or a process did; the message is for the user."""


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP came."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Signals:
    """Turns the first signal into Interrupted, raised where it is allowed; all later ones do nothing."""

    def __init__(self) -> None:
        self._held = True
        self._came = 0
        self._raised = False

    def install(self) -> None:
        """From now on signals are noted; they are raised after `allow`."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._came = self._came or number
        if not self._held:
            self._raise()

    def _raise(self) -> None:
        if not self._raised:
            self._raised = True
            raise Interrupted(self._came)

    def allow(self) -> None:
        """Raises what came meanwhile."""
        self._held = False
        if self._came:
            self._raise()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """So that no child is started and forgotten."""
        self._held = True
        try:
            yield
        finally:
            self.allow()

    def ignore(self) -> None:
        """From now on, for good: cleaning up is not interrupted."""
        self._held = True


class Child:
    """One process. Its standard error goes to `log` unless it was given the terminal."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path | None) -> None:
        self.name, self.process, self.log = name, process, log
        self._buffer = b""

    @property
    def pid(self) -> int:
        return self.process.pid

    def ask(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self.died() from None

    def answer(self, timeout: float = PATIENCE) -> Any:
        """The next line of its output, which is JSON; an answer {"error": …} is raised."""
        until = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            self._read(until)
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer = json.loads(line)
        if "error" in answer:
            raise DemoError(f"{self.name}: {answer['error']}")
        return answer

    def _read(self, until: float) -> None:
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        if not select.select([fd], [], [], max(0.0, until - time.monotonic()))[0]:
            raise DemoError(f"{self.name} did not answer in time{self.last_words()}")
        data = os.read(fd, 1 << 16)
        if not data:
            raise self.died()
        self._buffer += data

    def died(self) -> DemoError:
        self.process.wait()
        return DemoError(f"{self.name} ended with status {self.process.returncode}{self.last_words()}")

    def last_words(self) -> str:
        text = self.log.read_text(errors="replace").strip() if self.log and self.log.exists() else ""
        return "; its last words:\n" + "\n".join(text.splitlines()[-20:]) if text else ""

    def wait(self, timeout: float = PATIENCE) -> None:
        """Until it ends. Raises DemoError unless it succeeds."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise DemoError(f"{self.name} did not end in time{self.last_words()}") from None
        if code:
            raise self.died()

    def stop(self, patience: float = 30.0) -> None:
        """Close its input, ask, then insist. Never raises for a process that is gone."""
        for end in (self.process.stdin, self.process.stdout):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.close()
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Children:
    """Starts processes and, at the end, stops all of them, the last first."""

    def __init__(self, signals: Signals, logs: Path, environment: dict[str, str]) -> None:
        self._signals, self._logs, self._environment = signals, logs, environment
        self._all: list[Child] = []

    def python(self, name: str, arguments: Sequence[str], *, terminal: bool = False) -> Child:
        """`python -m …`. With `terminal` it writes to ours; otherwise we talk to it through pipes."""
        log = None if terminal else self._logs / f"{name.replace(' ', '-')}.log"
        with contextlib.ExitStack() as stack:
            errors: IO[bytes] | None = stack.enter_context(log.open("wb")) if log else None
            pipe = None if terminal else subprocess.PIPE
            with self._signals.held():
                process = subprocess.Popen(
                    [sys.executable, "-m", *arguments],
                    stdin=pipe or subprocess.DEVNULL,
                    stdout=pipe,
                    stderr=errors,
                    env=self._environment,
                    start_new_session=True,  # Ctrl-C comes to us alone; we end them in order.
                    preexec_fn=_die_with_parent,
                )
                child = Child(name, process, log)
                self._all.append(child)
        return child

    def stop(self) -> None:
        while self._all:
            self._all[-1].stop()
            self._all.pop()


def _die_with_parent() -> None:
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
