"""An origin that lies: each request is answered by a lie that a script chooses, or honestly.

    with Liar(DATA) as liar:
        liar.script = once(lies.RESET, part=2)

It serves one object under every path but those below "/other", which is another one, and never lied about. What it
says about its object is true unless a lie says otherwise. The log holds every request with the lie that it got.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from tests.support.origin import Origin, receive

DATE = "Wed, 21 Oct 2015 07:28:00 GMT"
Headers = list[tuple[str, str]]


@dataclass(frozen=True)
class Version:
    """An object at one time; "" for what it has not."""

    data: bytes
    etag: str = ""
    modified: str = DATE
    ranges: bool = True


@dataclass(frozen=True)
class Asked:
    """One request. `first` and `last` are those of its range, None without one."""

    number: int
    target: str
    headers: dict[str, str]
    first: int | None
    last: int | None
    connection: int

    @property
    def probe(self) -> bool:
        """Whether it only asks what there is."""
        return (self.first, self.last) == (0, 0)

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


class Told:
    """One answer on its way: what the truth is, and the socket to tell something else on."""

    def __init__(self, sock: socket.socket, asked: Asked, now: Version, liar: Liar) -> None:
        self.sock, self.asked, self.now, self.liar = sock, asked, now, liar
        self.stopping = liar.ending
        size = len(now.data)
        self.ranged = now.ranges and asked.first is not None
        self.first = asked.first or 0 if self.ranged else 0
        last = asked.last if self.ranged and asked.last is not None else size - 1
        self.last = min(last, size - 1)

    @property
    def body(self) -> bytes:
        """What was asked for."""
        return self.now.data[self.first : self.last + 1]

    @property
    def range(self) -> str:
        return f"bytes {self.first}-{self.last}/{len(self.now.data)}"

    @property
    def status(self) -> int:
        return 206 if self.ranged else 200

    def headers(self, length: int | None = None) -> Headers:
        found: Headers = [("Content-Length", str(len(self.body) if length is None else length))]
        if self.now.etag:
            found.append(("ETag", self.now.etag))
        if self.now.modified:
            found.append(("Last-Modified", self.now.modified))
        if self.ranged:
            found.append(("Content-Range", self.range))
        return found

    def head(self, status: int, headers: Headers, version: str = "HTTP/1.1") -> None:
        lines = "".join(f"{k}: {v}\r\n" for k, v in headers)
        self.send(f"{version} {status} Told\r\n{lines}\r\n".encode("latin-1"))

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def tell(self, status: int | None = None, body: bytes | None = None, **changed: str | None) -> bool:
        """The truth but for these: header names with "_" for "-", None takes one away. Whether to go on."""
        body = self.body if body is None else body
        new = {k.replace("_", "-").lower(): v for k, v in changed.items()}
        kept = [(k, v) for k, v in self.headers(len(body)) if k.lower() not in new]
        self.head(self.status if status is None else status, kept + [(k, v) for k, v in new.items() if v is not None])
        self.send(body)
        return True

    def refuse(self, status: int, body: bytes = b"<html>sorry</html>", **headers: str) -> bool:
        """An answer that is not about the object."""
        own = [(k.replace("_", "-"), v) for k, v in headers.items()]
        self.head(status, [("Content-Type", "text/html"), ("Content-Length", str(len(body))), *own])
        self.send(body)
        return True

    def honest(self) -> bool:
        """As an origin should."""
        now, headers = self.now, self.asked.headers
        if now.etag and headers.get("if-match", now.etag) not in (now.etag, "*"):
            return self.refuse(412)
        if "if-match" not in headers and headers.get("if-unmodified-since", now.modified) != now.modified:
            return self.refuse(412)
        if self.ranged and self.first > self.last:
            return self.refuse(416, Content_Range=f"bytes */{len(now.data)}")
        return self.tell()

    def reset(self) -> bool:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False

    def stall(self) -> bool:
        self.stopping.wait()
        return False

    def drip(self, data: Iterator[bytes], seconds: float) -> bool:
        """One piece after the other until nobody listens."""
        for piece in data:
            self.send(piece)
            if self.stopping.wait(seconds):
                break
        return False


@dataclass(frozen=True)
class Lie:
    """`tell` writes an answer, and says whether the connection may go on."""

    name: str
    tell: Callable[[Told], bool] = field(compare=False)

    def __repr__(self) -> str:
        return self.name


Script = Callable[[Asked], "Lie | None"]
"""The lie for a request, None for the truth."""


def honest(asked: Asked) -> Lie | None:
    return None


class Liar(Origin):
    """`now` is what there is; `script` chooses; `log` has each request with the name of its lie, "" for the truth."""

    def __init__(self, data: bytes | Version, *, tls: ssl.SSLContext | None = None) -> None:
        super().__init__({}, tls=tls)
        self.now = data if isinstance(data, Version) else Version(data, '"v1"')
        self.other = Version(bytes(reversed(self.now.data)), '"other"')
        self.script: Script = honest
        self.log: list[tuple[Asked, str]] = []
        self.ending = threading.Event()
        self._telling = threading.Lock()

    def parts(self, size: int, since: int = 0) -> set[int]:
        """Indices of the parts of `size` bytes that were asked for, probes left out, after `since` requests."""
        asked = [a for a, _ in self.log[since:] if a.first is not None and not a.probe]
        return {(a.first or 0) // size for a in asked}

    def stop(self) -> None:
        self.ending.set()
        super().stop()

    def _one(self, sock: socket.socket, stream: BinaryIO, number: int) -> bool:
        came = receive(stream)
        if came is None:
            return False
        _, target, headers = came
        first, _, last = headers.get("range", "").removeprefix("bytes=").partition("-")
        with self._telling:
            asked = Asked(
                len(self.log), target, headers, int(first) if first else None, int(last) if last else None, number
            )
            other = asked.path.startswith("/other")
            lie, now = (None, self.other) if other else (self.script(asked), self.now)
            self.log.append((asked, lie.name if lie else ""))
        told = Told(sock, asked, now, self)
        return (lie.tell if lie else Told.honest)(told) and headers.get("connection", "").lower() != "close"
