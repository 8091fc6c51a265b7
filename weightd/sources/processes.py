"""Receive in processes of their own, straight into the daemon's memory.

One interpreter decrypts TLS more slowly than a fast network brings it. A `ProcessReader` is a Reader whose work a child
process does; everything else, also retries and what is known of an origin, stays in the daemon.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from weightd.core.errors import SourceUnavailable
from weightd.sources.connection import ConnectionPool, HttpOptions
from weightd.sources.desk import Use
from weightd.sources.idle import IDLE_SECONDS, Idle
from weightd.sources.messages import Abort, Channel, Message, NewChannel, Setup

CHECK_S: Final = 0.2
"""How soon an answer that does not come after an abort is noticed."""
ANSWER_S: Final = 5.0
"""For how long a process may take to answer after an abort, or to close, or be stopped by a signal; then it is killed,
and with it its maps."""


_NEEDED: Final = ("PATH", "HOME", "LANG", "TMPDIR", "TZ")
_NEEDED_PREFIXES: Final = ("PYTHON", "LC_", "LD_", "SSL_CERT_", "OPENSSL_", "MALLOC_", "COVERAGE_")


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """What a child gets of it: what Python and OpenSSL read. Proxies, keys and tokens stay with the daemon."""
    return {k: v for k, v in environment.items() if k in _NEEDED or k.startswith(_NEEDED_PREFIXES)}


class Process:
    """One child. `channels` are those open to it."""

    def __init__(self, options: HttpOptions) -> None:
        self.channels = 0
        self._control, theirs = Channel.pair()
        self._lock = threading.Lock()
        self._numbers = 0
        with theirs:
            self._popen = subprocess.Popen(
                # -P: modules come from where the daemon's come from, never from its working directory.
                [sys.executable, "-P", "-m", "weightd.sources.receiver_process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=inherited(os.environ),
                start_new_session=True,
            )
        self._send(Setup(options))

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    @property
    def stopped(self) -> bool:
        """By a signal or a debugger: it answers nobody until it is let go on."""
        try:
            status = Path(f"/proc/{self.pid}/stat").read_bytes()
        except OSError:
            return False
        return status.rpartition(b") ")[2][:1] in (b"T", b"t")

    def open(self) -> Line:
        """A new channel to it. Raises OSError when it has ended."""
        ours, theirs = Channel.pair()
        with theirs, self._lock:
            self._numbers += 1
            number = self._numbers
            try:
                self._control.send(NewChannel(number), theirs.fileno())
            except OSError:
                ours.close()
                raise
            self.channels += 1
        return Line(self, number, ours)

    def closed(self) -> None:
        """One channel less."""
        with self._lock:
            self.channels -= 1

    def abort(self, number: int, reader: int, slow: bool) -> None:
        """The reader on this channel; nothing happens when the process has ended."""
        try:
            self._send(Abort(number, reader, slow))
        except OSError:
            pass  # Whoever waits for its answer sees its end.

    def _send(self, message: Message) -> None:
        with self._lock:
            self._control.send(message)

    def kill(self) -> None:
        """Nothing of the daemon's memory is mapped by it when this returns. Idempotent."""
        self._popen.kill()
        self._popen.wait()

    def close(self) -> None:
        """It ends by itself, or else is killed. Idempotent."""
        self._control.shutdown()
        try:
            self._popen.wait(ANSWER_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._control.close()


class Line:
    """A channel and the process at its other end; used by one reader at a time."""

    def __init__(self, process: Process, number: int, channel: Channel) -> None:
        self.process, self.channel = process, channel
        self._number = number
        self.readers = 0
        self.used: Counter[Use] = Counter()
        """Addresses of its connections, which count as used."""
        channel.wait(CHECK_S)

    def abort(self, reader: int, slow: bool) -> None:
        self.process.abort(self._number, reader, slow)

    def close(self) -> None:
        self.process.closed()
        self.channel.close()


class Processes:
    """Up to `most` receiver processes, started when they are first needed. Thread-safe. What is known of origins
    is that of `shared`. A channel that was idle for `seconds` is closed, and with it its connections."""

    def __init__(self, most: int, shared: ConnectionPool, *, seconds: float = IDLE_SECONDS) -> None:
        self.shared = shared
        self._most, self._options = most, shared.options
        self._lock = threading.Lock()
        self._processes: list[Process] = []
        # Each keeps a connection; together they keep no more than the daemon itself would.
        self._idle: Idle[None, Line] = Idle(self.close_line, self._options.connections_per_host, seconds=seconds)
        self._closed = False

    def take(self) -> Line:
        """A channel that nobody uses. Raises SourceUnavailable when there can be none."""
        with self._lock:
            if self._closed:
                raise SourceUnavailable("the sources are closed")
            self._forget_dead()
            if (idle := self._idle.take(None)) is not None:
                return idle
            try:
                return self._least().open()
            except OSError as e:
                raise SourceUnavailable(f"a receiver process cannot be used: {e.strerror}") from None

    def _least(self) -> Process:
        """The process with the fewest channels; a new one while there may be more."""
        least = min(self._processes, key=lambda p: p.channels, default=None)
        if least is None or (least.channels and len(self._processes) < self._most):
            least = Process(self._options)
            self._processes.append(least)
        return least

    def _forget_dead(self) -> None:
        dead = [p for p in self._processes if not p.alive]
        self._idle.drop(lambda line: line.process in dead)
        for process in dead:
            self._processes.remove(process)
            process.close()

    def give(self, line: Line) -> None:
        """Back, to be used again."""
        self._idle.give(None, line)

    def close_line(self, line: Line) -> None:
        """It is of no use any more, and its connections are not either."""
        for place, address in line.used.elements():
            self.shared.addresses.give(place, address)
        line.close()

    def pids(self) -> list[int]:
        """Of those that run."""
        with self._lock:
            return [p.pid for p in self._processes if p.alive]

    def close(self) -> None:
        """All of them end. Idempotent. Blocking."""
        with self._lock:
            self._closed = True
            processes, self._processes = self._processes, []
        self._idle.close()
        for process in processes:
            process.close()
