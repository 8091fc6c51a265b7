"""`python -m weightd.sources.receiver_process FD`: a process that receives for the daemon.

It has the readers of several receiver threads of the daemon, each in a thread of its own, and reads straight into the
daemon's memory, of which it maps only what a request is for, and only until that has ended. It ends when the daemon
does: the control socket FD is then at its end.
"""

from __future__ import annotations

import gc
import mmap
import os
import signal
import socket
import sys
import threading
import traceback
from contextlib import suppress
from typing import Final

from weightd.core.errors import WeightdError
from weightd.kernel import MADV_POPULATE_WRITE, address_of, advise, step_back
from weightd.sources.connection import ConnectionPool
from weightd.sources.http_reader import HttpReader
from weightd.sources.messages import (
    Abort,
    Channel,
    Close,
    Done,
    Finish,
    Message,
    NewChannel,
    Open,
    Read,
    Setup,
    Start,
    failed,
)
from weightd.sources.remote import make_pool

SPAN: Final = 32 << 20
"""Bytes mapped at a time: a part of the usual size, wherever it begins."""


class Window:
    """The piece of the daemon's memory that is mapped."""

    def __init__(self) -> None:
        self._fd = -1
        self._map: mmap.mmap | None = None
        self._at = self._size = 0

    def take(self, fd: int) -> None:
        """Other memory from now on; owns `fd`."""
        self.drop()
        self._fd, self._size = fd, os.fstat(fd).st_size

    def view(self, position: int, count: int) -> memoryview:
        """`count` bytes from `position`, writable; nothing beyond them is touched."""
        if self._fd < 0:  # mmap(2) would give memory that is nobody's.
            raise AssertionError("a read without the memory that it is for")
        if self._map is None or not self._at <= position or position + count > self._at + len(self._map):
            self._unmap()
            self._at = position - position % mmap.ALLOCATIONGRANULARITY
            length = max(min(SPAN, self._size - self._at), position + count - self._at)
            self._map = mmap.mmap(self._fd, length, offset=self._at)
        begin = position - self._at
        page = begin - begin % mmap.PAGESIZE
        # Before Linux 5.14 the kernel has no such advice, and faults the pages in one by one.
        with suppress(OSError):
            advise(address_of(self._map) + page, begin + count - page, MADV_POPULATE_WRITE)
        return memoryview(self._map)[begin : begin + count]

    def drop(self) -> None:
        """Nothing is mapped any more. Idempotent."""
        self._unmap()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _unmap(self) -> None:
        if self._map is None:
            return
        try:
            self._map.close()
        except BufferError:
            gc.collect()  # An error's frames hold each other, and a view.
            self._map.close()
        self._map = None


class Service:
    """One channel: one reader after the other."""

    def __init__(self, channel: Channel, setup: Setup) -> None:
        self._channel = channel
        self._pool: ConnectionPool = make_pool(setup.options, channel)
        self._reader: HttpReader | None = None
        self._number = self._aborted = 0
        self._lock = threading.Lock()
        self._window = Window()

    def run(self) -> None:
        """Until the daemon closes the channel."""
        try:
            while True:
                message, fd = self._channel.receive()
                self._channel.send(self._answer(message, fd))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with suppress(EOFError, BrokenPipeError, ConnectionResetError):
                # In mid-request it would tell the daemon that it leaves, who knows it by the end of the channel.
                self._close()
            self._pool.close()
            self._channel.close()

    def _answer(self, message: Message, fd: int) -> Message:
        try:
            return Done(self._do(message, fd))
        except WeightdError as e:
            answer = failed(e)
        # Only now, when the frames of the error are gone, does nothing hold a view any more.
        self._window.drop()
        return answer

    def _do(self, message: Message, fd: int) -> int:
        match message:
            case Open(number, file):
                self._open(number, HttpReader(file, self._pool))
            case Start(offset, length):
                self._current.start(offset, length)
            case Read(position, count):
                if fd >= 0:
                    self._window.take(fd)
                with self._window.view(position, count) as view:
                    return self._current.readinto(view)
            case Finish():
                self._window.drop()
                self._current.finish()
            case Close():
                self._close()
            case _:
                raise AssertionError(f"a channel takes no {type(message).__name__}")
        return 0

    @property
    def _current(self) -> HttpReader:
        if self._reader is None:
            raise AssertionError("no reader is open")
        return self._reader

    def _open(self, number: int, reader: HttpReader) -> None:
        with self._lock:
            self._reader, self._number = reader, number
            if self._aborted == number:
                reader.abort()

    def abort(self, number: int, slow: bool) -> None:
        """From another thread; also for a reader that is not open yet."""
        with self._lock:
            self._aborted = max(self._aborted, number)
            if self._number == number and self._reader is not None:
                self._reader.abort(slow=slow)

    def _close(self) -> None:
        self._window.drop()
        with self._lock:
            reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()


def serve(control: Channel) -> None:
    """Until the daemon has gone."""
    services: dict[int, Service] = {}
    setup, _ = control.receive()
    assert isinstance(setup, Setup)
    while True:
        message, fd = control.receive()
        match message:
            case NewChannel(number):
                service = services[number] = Service(Channel(socket.socket(fileno=fd)), setup)
                threading.Thread(
                    target=_run, args=(service, number, services), name=f"channel-{number}", daemon=True
                ).start()
            case Abort(number, reader, slow) if number in services:
                services[number].abort(reader, slow)


def _run(service: Service, number: int, services: dict[int, Service]) -> None:
    try:
        service.run()
        del services[number]
    except BaseException:  # noqa: BLE001 - a bug: the daemon must not wait for an answer that will not come
        traceback.print_exc()
        os._exit(os.EX_SOFTWARE)


def main() -> None:
    # Whoever stops the daemon may signal all of its processes: it decides when this one ends.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    step_back()
    with suppress(EOFError):
        serve(Channel(socket.socket(fileno=int(sys.argv[1]))))
    # Threads may be in the middle of a read that nobody waits for.
    os._exit(0)


if __name__ == "__main__":
    main()
