"""Answers that end. `http.client` waits for ever for one that drips or floods, and takes half a head for a head."""

from __future__ import annotations

import http.client
import io
import math
import socket
import time

from weightd.sources.net import Crawling

SLOWEST = 1024
"""Bytes per second. Of a connection that brings fewer for as long as it may be silent, nothing is expected any more."""
HEAD = 1 << 18
"""Bytes of a head, and of the interim answers before it; servers send a few hundred, proxies some thousands."""
SPARE = 1 << 16
"""Bytes by which the framing of a body may exceed SHARE times what was asked for."""
SHARE = 16
"""A chunk of one byte takes six."""
INTERIM = 16
"""Interim answers before the real one (RFC 9110 §15.2)."""


class Answer(http.client.HTTPResponse):
    """Raises Crawling for one that keeps coming and gets nowhere, HTTPException for one that floods, RemoteDisconnected
    where the head breaks off."""

    def __init__(
        self, sock: socket.socket, debuglevel: int = 0, method: str | None = None, url: str | None = None
    ) -> None:
        super().__init__(sock, debuglevel, method, url)
        self._wire = _Wire(sock, self.fp.detach())
        self.fp = io.BufferedReader(self._wire)

    def begin(self) -> None:
        self._wire.allow(HEAD)
        for _ in range(INTERIM):
            super().begin()
            if self._wire.ended:  # http.client takes the end of the connection for that of the head.
                raise http.client.RemoteDisconnected("the head breaks off")
            if not 102 <= self.status < 200:
                self._wire.restart()
                return
            self.headers = self.msg = None  # type: ignore[assignment]
        raise http.client.HTTPException("interim answers without end")

    def readinto(self, b: memoryview | bytearray) -> int:  # type: ignore[override]
        self._wire.allow(SHARE * len(b) + SPARE)
        return super().readinto(b)

    def read(self, amt: int | None = None) -> bytes:
        self._wire.allow(math.inf if amt is None else SHARE * amt + SPARE)
        return super().read(amt)


class _Wire(io.RawIOBase):
    """What comes from `sock`, counted and timed; `stream` is closed with it. Time in which nobody reads counts not."""

    def __init__(self, sock: socket.socket, stream: io.RawIOBase) -> None:
        self.ended = False
        self._receive, self._stream = sock.recv_into, stream
        self._patience = sock.gettimeout() or math.inf
        self._room = math.inf
        self._waited, self._came = 0.0, 0

    def allow(self, room: float) -> None:
        """So many bytes may come until the next call."""
        self._room = room

    def restart(self) -> None:
        """What came until now does not tell how fast the rest will be."""
        self._waited, self._came = 0.0, 0

    def readable(self) -> bool:
        return True

    def readinto(self, view: memoryview) -> int:  # type: ignore[override]
        began = time.monotonic()
        count = self._receive(view)
        self._waited += time.monotonic() - began
        self._came += count
        self._room -= count
        self.ended = not count
        if self._room < 0:
            raise http.client.HTTPException("more than an answer needs")
        if self._waited > self._patience:
            if self._came < SLOWEST * self._waited and count:
                raise Crawling
            self.restart()
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()
