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
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    """One process, in a session of its own. Its standard error goes to `log` unless it was given the terminal; `end` is
    the signal that ends it."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path | None, end: signal.Signals) -> None:
        self.name, self.process, self.log, self.end = name, process, log, end
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

    def asked(self, message: dict[str, Any]) -> Any:
        """Its answer."""
        self.ask(message)
        return self.answer()

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
            self.process.send_signal(self.end)
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Children:
    """Starts processes and, at the end, stops all of them, the last first."""

    def __init__(self, signals: Signals, logs: Path, environment: Mapping[str, str]) -> None:
        self._signals, self._logs, self._environment = signals, logs, environment
        self._all: list[Child] = []
        self._files: list[Path] = []

    def python(
        self, name: str, arguments: Sequence[str], *, terminal: bool = False, more: Mapping[str, str] | None = None
    ) -> Child:
        """`python -m …`. With `terminal` it writes to ours; otherwise we talk to it through pipes. `more` is for its
        environment alone."""
        log = None if terminal else self._log(name)
        pipe = None if terminal else subprocess.PIPE
        command = [sys.executable, "-m", *arguments]
        with contextlib.ExitStack() as stack:
            errors: IO[bytes] | None = stack.enter_context(log.open("wb")) if log else None
            return self._start(name, command, log, signal.SIGTERM, more or {}, stdin=pipe, stdout=pipe, stderr=errors)

    def server(self, name: str, command: Sequence[str], directory: Path) -> Child:
        """A program that nobody talks to so, in `directory`. It is killed at the end: what it holds is not kept."""
        log = self._log(name)
        with log.open("wb") as output:
            return self._start(name, command, log, signal.SIGKILL, {}, stdout=output, stderr=output, cwd=directory)

    def remove_at_end(self, files: Iterable[Path]) -> None:
        """What children leave outside of their directories, as far as it will be there."""
        self._files.extend(files)

    def _log(self, name: str) -> Path:
        return self._logs / f"{name.replace(' ', '-')}.log"

    def _start(
        self,
        name: str,
        command: Sequence[str],
        log: Path | None,
        end: signal.Signals,
        more: Mapping[str, str],
        **to_popen: Any,
    ) -> Child:
        to_popen["stdin"] = to_popen.get("stdin") or subprocess.DEVNULL
        with self._signals.held():
            process: subprocess.Popen[bytes] = subprocess.Popen(
                command,
                env={**self._environment, **more},
                start_new_session=True,  # Ctrl-C comes to us alone; we end them in order.
                preexec_fn=lambda: _die_with_parent(end),
                **to_popen,
            )
            child = Child(name, process, log, end)
            self._all.append(child)
        return child

    def stop(self) -> list[str]:
        """Returns which of them left processes behind; those are killed."""
        left = []
        while self._all:
            child = self._all[-1]
            child.stop()
            survivors = of_session(child.pid)
            for pid in survivors:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            left += [f"process {pid} of {child.name}" for pid in survivors]
            self._all.pop()
        for path in self._files:
            path.unlink(missing_ok=True)
        return left


def of_session(session: int) -> list[int]:
    """The processes in it that are not over (proc_pid_stat(5): the third and the sixth field)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] not in "ZX":
            found.append(int(path.parent.name))
    return found


def _die_with_parent(end: signal.Signals) -> None:
    _LIBC.prctl(PR_SET_PDEATHSIG, end)
