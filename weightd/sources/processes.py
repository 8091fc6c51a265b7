"""Receive in processes of their own, straight into the daemon's memory.

One interpreter decrypts TLS more slowly than a fast network brings it. A `ProcessReader` is a Reader whose work a child
process does; everything else, also retries and what is known of an origin, stays in the daemon.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Final

from weightd.core.errors import SourceUnavailable, WeightdError
from weightd.core.manifest import FileSpec
from weightd.core.refs import redact
from weightd.sources import net
from weightd.sources.connection import ConnectionPool, HttpOptions
from weightd.sources.messages import (
    Abort,
    Ask,
    Channel,
    Close,
    Done,
    Failed,
    Finish,
    Message,
    NewChannel,
    Open,
    Plain,
    Read,
    Setup,
    Start,
    Told,
    restored,
)
from weightd.sources.protocols import Shared
from weightd.sources.shared import SharedGate
from weightd.sources.urls import Origin

CHECK_S: Final = 0.2
"""How soon an answer that does not come after an abort is noticed."""
ROUTE: Final = frozenset({"take", "current", "learned", "refused", "done"})
"""What is asked of the routes, not of a gate."""
ANSWER_S: Final = 5.0
"""For how long a process may take to answer after an abort, or to close; then it is killed, and with it its maps."""


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
                start_new_session=True,
            )
        self._send(Setup(options))

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def open(self) -> Line:
        """A new channel to it. Raises OSError when it has ended."""
        ours, theirs = Channel.pair()
        with theirs, self._lock:
            self._numbers += 1
            number = self._numbers
            self._control.send(NewChannel(number), theirs.fileno())
            self.channels += 1
        return Line(self, number, ours)

    def closed(self) -> None:
        """One channel less."""
        with self._lock:
            self.channels -= 1

    def abort(self, number: int, reader: int) -> None:
        """The reader on this channel; nothing happens when the process has ended."""
        try:
            self._send(Abort(number, reader))
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
        channel.wait(CHECK_S)

    def abort(self, reader: int) -> None:
        self.process.abort(self._number, reader)

    def close(self) -> None:
        self.process.closed()
        self.channel.close()


class Processes:
    """Up to `most` receiver processes, started when they are first needed. Thread-safe. Gates and routes are those
    of `shared`."""

    def __init__(self, most: int, shared: ConnectionPool) -> None:
        self.gates, self.routes = shared.gates, shared.routes
        self._most, self._options = most, shared.options
        self._lock = threading.Lock()
        self._processes: list[Process] = []
        self._idle: list[Line] = []
        self._closed = False

    def reader(self, file: FileSpec, memory: Shared) -> ProcessReader:
        """Its views must lie in `memory`. Opens nothing before its `start`."""
        return ProcessReader(file, memory, self)

    def take(self) -> Line:
        """A channel that nobody uses. Raises SourceUnavailable when there can be none."""
        with self._lock:
            if self._closed:
                raise SourceUnavailable("the sources are closed")
            self._forget_dead()
            if self._idle:
                return self._idle.pop()
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
        for line in [i for i in self._idle if i.process in dead]:
            self._idle.remove(line)
            line.close()
        for process in dead:
            self._processes.remove(process)
            process.close()

    def give(self, line: Line) -> None:
        """Back, to be used again."""
        with self._lock:
            if not self._closed:
                self._idle.append(line)
                return
        line.close()

    def pids(self) -> list[int]:
        """Of those that run."""
        with self._lock:
            return [p.pid for p in self._processes if p.alive]

    def close(self) -> None:
        """All of them end. Idempotent. Blocking."""
        with self._lock:
            self._closed = True
            lines, self._idle = self._idle, []
            processes, self._processes = self._processes, []
        for line in lines:
            line.close()
        for process in processes:
            process.close()


class ProcessReader:
    """Implements `weightd.sources.protocols.Reader` for views in `memory`."""

    def __init__(self, file: FileSpec, memory: Shared, processes: Processes) -> None:
        self._file, self._memory, self._processes = file, memory, processes
        self._line: Line | None = None
        self._number = 0
        self._aborted = False
        self._gate: SharedGate | None = None
        self._asks = False
        self._length = self._left = 0
        self._shown = False

    def start(self, offset: int, length: int) -> None:
        if length <= 0 or offset < 0 or offset + length > self._file.size:
            raise ValueError(f"bytes {offset}+{length} of a file of {self._file.size}")
        if self._aborted:
            raise self._as_aborted()
        if self._line is None:
            self._line = self._processes.take()
            self._line.readers += 1
            self._number = self._line.readers
            self._call(Open(self._number, self._file))
        self._shown = False
        self._call(Start(offset, length))
        self._length = self._left = length

    def readinto(self, view: memoryview) -> int:
        if self._left <= 0:
            raise ValueError("readinto without start, or beyond the length asked for")
        message = Read(self._memory.offset_of(view), min(len(view), self._left))
        fd, self._shown = -1 if self._shown else self._memory.fd, True
        count = self._call(message, fd)
        self._left -= count
        if self._gate is not None:
            self._gate.moved(count)
        return count

    def finish(self) -> None:
        if self._left or not self._length:
            raise ValueError(f"finish with {self._left} bytes unread")
        self._call(Finish())

    def abort(self) -> None:
        self._aborted = True
        if (line := self._line) is not None:
            line.abort(self._number)
        if (gate := self._gate) is not None:
            gate.wake()
        self._processes.routes.wake()

    def close(self) -> None:
        line = self._line
        if line is None:
            return
        try:
            self._call(Close(), closing=True)
        except WeightdError:
            return  # The process has ended; so has what there was to close.
        self._line = None
        self._processes.give(line)

    def _call(self, message: Message, fd: int = -1, *, closing: bool = False) -> int:
        """The count of the answer. Raises its error, and SourceUnavailable when the process has ended."""
        line = self._line
        if line is None:
            raise SourceUnavailable("the receiver process has ended", file=self._file.path, remedy=net.LATER)
        try:
            line.channel.send(message, fd)
            answer = self._answer(line, closing)
        except (EOFError, OSError):
            raise self._lost(line) from None
        if isinstance(answer, Failed):
            raise restored(answer)
        return answer.count

    def _answer(self, line: Line, closing: bool) -> Done | Failed:
        waited = 0.0
        while True:
            try:
                message, _ = line.channel.receive()
            except TimeoutError:
                waited = waited + CHECK_S if self._aborted or closing else 0.0
                if waited > ANSWER_S:
                    raise EOFError from None
                continue
            match message:
                case Ask(name, arguments):
                    line.channel.send(self._told(name, *arguments))
                case Done() | Failed():
                    return message
                case _:
                    raise AssertionError(f"no answer: {type(message).__name__}")

    def _told(self, name: str, *arguments: Plain) -> Told:
        return self._of_route(name, *arguments) if name in ROUTE else self._of_gate(name, *arguments)

    def _of_gate(self, name: str, scheme: Plain, host: Plain, port: Plain, *rest: Plain) -> Told:
        gate = self._processes.gates.of(Origin(str(scheme), str(host), int(port or 0)))
        match name:
            case "enter":
                self._gate = gate
                entered = gate.enter(lambda: self._aborted)
                self._gate = gate if entered else None
                return Told(entered)
            case "leave":
                self._leave()
            case "throttled":
                gate.throttled(float(rest[0] or 0.0))
            case "delay":
                return Told(gate.delay())
        return Told()

    def _of_route(self, name: str, *rest: Plain) -> Told:
        routes, url = self._processes.routes, self._file.url
        match name:
            case "take":
                route = routes.take(url, lambda: self._aborted)
                self._asks = route is not None and route.asks
                return Told(route=route)
            case "learned":
                routes.learned(url, str(rest[0]))
            case "current":
                return Told(routes.current(url, int(rest[0] or 0)))
            case "refused":
                return Told(routes.refused(url, int(rest[0] or 0)))
            case "done":
                self._done()
        return Told()

    def _leave(self) -> None:
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.leave()

    def _done(self) -> None:
        if self._asks:
            self._asks = False
            self._processes.routes.done(self._file.url)

    def _lost(self, line: Line) -> WeightdError:
        """The process does not answer: it ends now, if it has not, and writes no byte more."""
        line.process.kill()
        line.close()
        self._line = None
        self._leave()
        self._done()
        if self._aborted:
            return self._as_aborted()
        return SourceUnavailable(
            "the receiver process ended during the transfer", file=self._file.path, remedy=net.LATER
        )

    def _as_aborted(self) -> WeightdError:
        return net.aborted(redact(self._file.url)).about(file=self._file.path)

    def __repr__(self) -> str:
        return f"<ProcessReader {redact(self._file.url)} {self._length - self._left} of {self._length}>"
