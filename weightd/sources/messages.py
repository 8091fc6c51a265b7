"""What the daemon and its receiver processes say to each other, and the socket on which they do.

Each process has one control socket; each reader has a channel of its own, on which one side asks and the other answers.
While a process works on a request it may ask back, because what is told about an origin counts for all its readers.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Final

import msgspec

from weightd.core.errors import SourceUnavailable, WeightdError, all_errors
from weightd.core.manifest import FileSpec
from weightd.sources.connection import HttpOptions
from weightd.sources.routes import Route

MAX_MESSAGE: Final = 1 << 18
"""Bytes; the longest address that a message may carry is far below."""


Plain = str | int | float | bool | None


class Setup(msgspec.Struct, tag=True, frozen=True):
    """First on the control socket."""

    options: HttpOptions


class NewChannel(msgspec.Struct, tag=True, frozen=True):
    """On the control socket, with the channel's socket."""

    number: int


class Abort(msgspec.Struct, tag=True, frozen=True):
    """On the control socket: the `reader`-th reader of a channel is to end what it blocks in."""

    number: int
    reader: int
    slow: bool = False


class Open(msgspec.Struct, tag=True, frozen=True):
    """The next reader of this channel, counted from 1."""

    reader: int
    file: FileSpec


class Start(msgspec.Struct, tag=True, frozen=True):
    """As Reader.start; bytes."""

    offset: int
    length: int


class Read(msgspec.Struct, tag=True, frozen=True):
    """As Reader.readinto, `count` bytes to `position` of the memory whose descriptor came with this or an earlier Read
    since Start."""

    position: int
    count: int


class Finish(msgspec.Struct, tag=True, frozen=True):
    """As Reader.finish. When it is answered, the memory is not mapped any more."""


class Close(msgspec.Struct, tag=True, frozen=True):
    """As Reader.close, and as for Finish."""


class Done(msgspec.Struct, tag=True, frozen=True):
    """The answer to each of them; `count` to Read."""

    count: int = 0


class Failed(msgspec.Struct, tag=True, frozen=True):
    """The other answer: an error of `weightd.core.errors`."""

    kind: str
    message: str
    file: str
    remedy: str
    retry_after: float | None = None


class Ask(msgspec.Struct, tag=True, frozen=True):
    """From a process, before it answers: call `name` of what the daemon keeps for an origin or a file. Answered by
    Told."""

    name: str
    arguments: tuple[Plain, ...] = ()


class Told(msgspec.Struct, tag=True, frozen=True):
    """The answer to Ask; `route` to that for one, `failed` where it raised."""

    value: Plain = None
    route: Route | None = None
    failed: Failed | None = None


Message = (
    Setup | NewChannel | Abort | Open | Start | Read | Finish | Close | Done | Failed | Ask | Told
)  # fmt: skip


def failed(error: WeightdError) -> Failed:
    """As a message."""
    wait = error.retry_after if isinstance(error, SourceUnavailable) else None
    return Failed(type(error).__name__, error.message, error.file, error.remedy, wait)


def restored(message: Failed) -> WeightdError:
    """The error that `failed` was given."""
    error = all_errors().get(message.kind, WeightdError)(message.message, file=message.file, remedy=message.remedy)
    if isinstance(error, SourceUnavailable):
        error.retry_after = message.retry_after
    return error


class Channel:
    """One end of a pair of sockets. One thread sends, one receives, at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Message)

    @classmethod
    def pair(cls) -> tuple[Channel, socket.socket]:
        """This end, and the socket of the other."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), theirs

    def send(self, message: Message, fd: int = -1) -> None:
        """With a descriptor, of which the other side gets a copy. Raises OSError when the other side has gone."""
        socket.send_fds(self._socket, [self._encoder.encode(message)], [fd] if fd >= 0 else [])

    def receive(self) -> tuple[Message, int]:
        """With the descriptor that came, or -1. Raises EOFError when the other side has gone."""
        try:
            data, fds, flags, _ = socket.recv_fds(self._socket, MAX_MESSAGE, 1)
        except ConnectionError:
            raise EOFError from None
        if not data or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):  # Or a descriptor was lost.
            for fd in fds:
                os.close(fd)
            raise EOFError
        return self._decoder.decode(data), fds[0] if fds else -1

    def wait(self, seconds: float) -> None:
        """`receive` waits no longer than this, then raises TimeoutError."""
        self._socket.settimeout(seconds)

    def shutdown(self) -> None:
        """Both sides see the end. Idempotent."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Idempotent."""
        self._socket.close()
