"""Readers whose work a receiver process does."""

from __future__ import annotations

from weightd.core.errors import SourceUnavailable, WeightdError
from weightd.core.manifest import FileSpec
from weightd.core.refs import redact
from weightd.sources import net
from weightd.sources.desk import Desk
from weightd.sources.messages import Ask, Close, Done, Failed, Finish, Message, Open, Read, Start, restored
from weightd.sources.processes import ANSWER_S, CHECK_S, Line, Processes
from weightd.sources.protocols import Shared


class ProcessReader:
    """Implements `weightd.sources.protocols.Reader` for views in `memory`."""

    def __init__(self, file: FileSpec, memory: Shared, processes: Processes) -> None:
        self._file, self._memory, self._processes = file, memory, processes
        self._line: Line | None = None
        self._number = 0
        self._aborted = False
        self._desk = Desk(file.url, processes.shared, lambda: self._aborted)
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
        self._desk.moved(count)
        return count

    def finish(self) -> None:
        if self._left or not self._length:
            raise ValueError(f"finish with {self._left} bytes unread")
        self._call(Finish())

    def abort(self, *, slow: bool = False) -> None:
        self._aborted = True
        if (line := self._line) is not None:
            line.abort(self._number, slow)
        self._desk.wake()

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
                hurry = self._aborted or closing or line.process.stopped
                waited = waited + CHECK_S if hurry else 0.0
                if waited > ANSWER_S:
                    raise EOFError from None
                continue
            match message:
                case Ask(name, arguments):
                    line.channel.send(self._desk.answer(line.used, name, *arguments))
                case Done() | Failed():
                    return message
                case _:
                    raise AssertionError(f"no answer: {type(message).__name__}")

    def _lost(self, line: Line) -> WeightdError:
        """The process does not answer: it ends now, if it has not, and writes no byte more."""
        line.process.kill()
        self._processes.close_line(line)
        self._line = None
        self._desk.close()
        if self._aborted:
            return self._as_aborted()
        return SourceUnavailable(
            "the receiver process ended during the transfer", file=self._file.path, remedy=net.LATER
        )

    def _as_aborted(self) -> WeightdError:
        return net.aborted(redact(self._file.url)).about(file=self._file.path)

    def __repr__(self) -> str:
        return f"<ProcessReader {redact(self._file.url)} {self._length - self._left} of {self._length}>"
