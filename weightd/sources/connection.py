"""Blocking keep-alive connections for receiver threads, and the idle ones of each origin."""

from __future__ import annotations

import http.client
import select
import socket
import ssl
import threading
import time
from collections import defaultdict
from collections.abc import Mapping

import msgspec

from weightd.core.errors import ConfigError
from weightd.sources import net
from weightd.sources.gates import Gates
from weightd.sources.routes import Routes
from weightd.sources.shared import SharedGates, SharedRoutes
from weightd.sources.urls import Origin, Target

IDLE_SECONDS = 10.0
"""Idle connections older than this are not reused; servers close theirs after 15 s (Apache: 5 s) and more."""


class HttpOptions(msgspec.Struct, frozen=True):
    """Times in seconds. `ca_file` is a PEM file of authorities trusted instead of the system's. No more than
    `connections_per_host` requests are under way at one origin."""

    connect_timeout: float = 10.0
    read_timeout: float = 30.0
    connections_per_host: int = 16
    attempts: int = 4
    ca_file: str = ""


class Connection(http.client.HTTPConnection):
    """One connection to one origin. Used by one thread, except for `abort`."""

    def __init__(self, origin: Origin, options: HttpOptions, context: ssl.SSLContext | None) -> None:
        super().__init__(origin.host, origin.port)
        self.origin = origin
        self.aborted = False
        self.idle_since = 0.0
        self._options = options
        self._context = context
        self._live: socket.socket | None = None

    def connect(self) -> None:
        """Open the socket. Raises SourceUnavailable."""
        host, port = self.origin.host, self.origin.port
        try:
            self.sock = self._open_any()
        except OSError as e:
            raise net.of_connect(e, host, port, self._options.connect_timeout) from None
        except UnicodeError:
            raise net.unresolved(host) from None

    def _open_any(self) -> socket.socket:
        failure: OSError | None = None
        for family, kind, proto, _, address in socket.getaddrinfo(
            self.origin.host, self.origin.port, type=socket.SOCK_STREAM
        ):
            try:
                return self._open(socket.socket(family, kind, proto), address)
            except OSError as e:
                failure = e
                if self.aborted:
                    break
        raise failure or OSError("no address")

    def _open(self, sock: socket.socket, address: object) -> socket.socket:
        try:
            self._watch(sock)
            sock.settimeout(self._options.connect_timeout)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect(address)  # type: ignore[arg-type]
            if self._context is not None:
                sock = self._context.wrap_socket(sock, server_hostname=self.origin.host, do_handshake_on_connect=False)
                self._watch(sock)
                sock.do_handshake()
            sock.settimeout(self._options.read_timeout)
        except BaseException:
            sock.close()
            raise
        return sock

    def _watch(self, sock: socket.socket) -> None:
        self._live = sock
        if self.aborted:
            raise ConnectionAbortedError("aborted")

    def ask(self, target: Target, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        """Send a GET and read the answer's head. Raises OSError and HTTPException as http.client does."""
        self.putrequest("GET", target.path, skip_host=True, skip_accept_encoding=True)
        self.putheader("Host", target.origin.header)
        if target.authorization:
            self.putheader("Authorization", target.authorization)
        for name, value in headers.items():
            self.putheader(name, value)
        self.endheaders()
        return self.getresponse()

    def abort(self) -> None:
        """From another thread: whatever blocks on the socket, also the connect, ends now. Idempotent."""
        self.aborted = True
        if (sock := self._live) is not None:
            try:
                # Not SSLSocket.shutdown: it would turn a read that follows into one of bare ciphertext.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            except OSError:
                pass  # Not connected, or closed already: nothing blocks on it.

    def usable(self) -> bool:
        """Open, and silent as an idle connection is: neither ended nor sending what nobody asked for."""
        if self.sock is None or self.aborted:
            return False
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return not poll.poll(0)


class ConnectionPool:
    """Idle connections by origin. Thread-safe; opens no more than it is asked for, keeps `connections_per_host`.

    `gates` and `routes` are those of all pools that load the same origins together; by default its own.
    """

    def __init__(
        self, options: HttpOptions, gates: SharedGates | None = None, routes: SharedRoutes | None = None
    ) -> None:
        self.options = options
        self._lock = threading.Lock()
        self._idle: dict[Origin, list[Connection]] = defaultdict(list)
        self._context: ssl.SSLContext | None = None
        self._closed = False
        self.gates: SharedGates = gates or Gates(options.connections_per_host)
        # Whoever asks has its answer, or a fault, after these two; then the next one asks.
        self.routes: SharedRoutes = routes or Routes(options.connect_timeout + options.read_timeout)

    def take(self, origin: Origin) -> tuple[Connection, bool]:
        """A connection, and whether it was used before. A fresh one connects when it is asked."""
        while (idle := self._pop(origin)) is not None:
            if time.monotonic() - idle.idle_since < IDLE_SECONDS and idle.usable():
                return idle, True
            idle.close()
        return self.fresh(origin), False

    def fresh(self, origin: Origin) -> Connection:
        """A connection that was never used."""
        return Connection(origin, self.options, self.context() if origin.scheme == "https" else None)

    def give(self, connection: Connection) -> None:
        """Back for reuse, if it can be."""
        connection.idle_since = time.monotonic()
        if connection.usable():
            with self._lock:
                idle = self._idle[connection.origin]
                if not self._closed and len(idle) < self.options.connections_per_host:
                    idle.append(connection)
                    return
        connection.close()

    def context(self) -> ssl.SSLContext:
        """Made once: loading the authorities takes tens of milliseconds."""
        with self._lock:
            if self._context is None:
                try:
                    self._context = ssl.create_default_context(cafile=self.options.ca_file or None)
                except OSError as e:
                    raise ConfigError(
                        f"http.ca_file {self.options.ca_file!r} cannot be used: {e.strerror or type(e).__name__}",
                        remedy="Give a PEM file of trusted authorities.",
                    ) from None
            return self._context

    def close(self) -> None:
        """Close the idle ones; those in use are closed as they come back. Idempotent."""
        with self._lock:
            self._closed = True
            idle = [c for several in self._idle.values() for c in several]
            self._idle.clear()
        for connection in idle:
            connection.close()

    def _pop(self, origin: Origin) -> Connection | None:
        with self._lock:
            several = self._idle.get(origin)
            return several.pop() if several else None
