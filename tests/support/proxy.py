"""A real HTTP proxy on 127.0.0.1, in threads: CONNECT, absolute-form, basic authentication, a log, and faults.

    with Proxy(basic="user:password", names={"origin.test": "127.0.0.1"}) as proxy:
        fetch(proxy=f"http://user:password@127.0.0.1:{proxy.port}")
        assert proxy.log[0].target == "origin.test:443"

Each connection serves one tunnel, or absolute-form requests of any number, one after the other.
"""

from __future__ import annotations

import base64
import select
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, Self
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Asked:
    """One line of the log; header names in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    connection: int


class Proxy:
    """See the module. `names` are host names that only it can resolve."""

    def __init__(self, basic: str = "", names: Mapping[str, str] | None = None) -> None:
        self.log: list[Asked] = []
        self.status: int | None = None
        """Answered to everything, in place of what is due."""
        self.raw: bytes | None = None
        """Sent in place of any answer, then it closes; b"" closes at once."""
        self.stall = False
        """Never answer."""
        self.cut_after: int | None = None
        """Close a tunnel when so many bytes came back through it."""
        self._basic = "Basic " + base64.b64encode(basic.encode()).decode() if basic else ""
        self._names = names or {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0

    def url(self, user: str = "") -> str:
        return f"http://{user}@127.0.0.1:{self.port}" if user else f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._spawn(self._accept)
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._stopping.set()
        with self._lock:
            for sock in (self._listener, *self._open):
                _shutdown(sock)
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _spawn(self, work: object, *args: object) -> None:
        thread = threading.Thread(target=work, args=args, name="proxy", daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self._open.add(sock)
                self._spawn(self._serve, sock, self.connections)

    def _serve(self, sock: socket.socket, number: int) -> None:
        try:
            with sock, sock.makefile("rb") as stream:
                while self._one(sock, stream, number):
                    pass
        except OSError:
            pass  # One of the two sides went away.
        finally:
            with self._lock:
                self._open.discard(sock)

    def _one(self, sock: socket.socket, stream: BinaryIO, number: int) -> bool:
        """Whether the connection can be used again."""
        line = stream.readline(65536).decode("latin-1").split()
        if len(line) != 3:
            return False
        headers: dict[str, str] = {}
        while (raw := stream.readline(65536).strip()) != b"":
            name, _, value = raw.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        with self._lock:
            self.log.append(Asked(line[0], line[1], headers, number))
        if self.stall:
            self._stopping.wait()
        if self.raw is not None or self.stall:
            sock.sendall(self.raw or b"")
            return False
        status = 407 if self._basic and headers.get("proxy-authorization") != self._basic else self.status
        if status is not None:
            sock.sendall(f"HTTP/1.1 {status} No\r\nContent-Length: 2\r\n\r\nno".encode())
            return True
        if line[0] == "CONNECT":
            self._tunnel(sock, line[1])
            return False
        return self._forward(sock, line[0], line[1], headers)

    def _reach(self, host: str, port: int) -> socket.socket:
        upstream = socket.create_connection((self._names.get(host, host), port), 10)
        upstream.settimeout(None)
        with self._lock:
            self._open.add(upstream)
        return upstream

    def _leave(self, upstream: socket.socket) -> None:
        with self._lock:
            self._open.discard(upstream)
        upstream.close()

    def _tunnel(self, sock: socket.socket, to: str) -> None:
        host, _, port = to.rpartition(":")
        try:
            upstream = self._reach(host.strip("[]"), int(port))
        except OSError:
            sock.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
            return
        try:
            sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            self._pump(sock, upstream)
        finally:
            self._leave(upstream)

    def _pump(self, sock: socket.socket, upstream: socket.socket) -> None:
        left = self.cut_after
        while True:
            ready, _, _ = select.select([sock, upstream], [], [])
            for side in ready:
                data = side.recv(65536)
                if not data:
                    return
                if side is sock:
                    upstream.sendall(data)
                    continue
                sock.sendall(data if left is None else data[:left])
                left = None if left is None else left - len(data)
                if left is not None and left <= 0:
                    return

    def _forward(self, sock: socket.socket, method: str, target: str, headers: Mapping[str, str]) -> bool:
        """One request on a connection of its own, whose end ends the answer."""
        url = urlsplit(target)
        if url.scheme != "http" or not url.hostname:
            sock.sendall(b"HTTP/1.1 400 Not absolute\r\nContent-Length: 0\r\n\r\n")
            return True
        upstream = self._reach(url.hostname, url.port or 80)
        path = url.path + (f"?{url.query}" if url.query else "")
        passed = {k: v for k, v in headers.items() if k not in ("proxy-authorization", "connection")}
        lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in passed.items()), "connection: close", "", ""]
        try:
            upstream.sendall("\r\n".join(lines).encode("latin-1"))
            while data := upstream.recv(65536):
                sock.sendall(data)
        finally:
            self._leave(upstream)
        # The answer has its length, so the client may ask for more on this connection.
        return True


def _shutdown(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
