"""Blocking keep-alive connections for receiver threads, and the idle ones of each origin."""

from __future__ import annotations

import http.client
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from weightd.core.backoff import BASE_S
from weightd.core.errors import ConfigError, WeightdError
from weightd.core.refs import redact
from weightd.sources import net
from weightd.sources.answers import Answer
from weightd.sources.dial import Addresses, Dialler, Live, Place, SharedAddresses
from weightd.sources.gates import Gates
from weightd.sources.idle import IDLE_SECONDS, Idle
from weightd.sources.proxies import Proxies, Proxy
from weightd.sources.routes import Routes
from weightd.sources.shared import SharedGates, SharedRoutes
from weightd.sources.tunnel import open_tunnel
from weightd.sources.urls import Origin, Target, target
from weightd.version import __version__

USER_AGENT = f"weightd/{__version__}"


class HttpOptions(msgspec.Struct, frozen=True):
    """Times in seconds. `ca_file` is a PEM file of authorities trusted instead of the system's. No more than
    `connections_per_host` requests are under way at one origin. A question is asked up to `attempts` times, with pauses
    that begin at up to `pause` and double. `proxies`: by default none, whatever the environment says."""

    connect_timeout: float = 10.0
    read_timeout: float = 30.0
    connections_per_host: int = 16
    attempts: int = 4
    pause: float = BASE_S
    ca_file: str = ""
    proxies: Proxies = Proxies()


class Connection(http.client.HTTPConnection):
    """One connection to one origin, perhaps through a proxy. Used by one thread, except for `abort`."""

    response_class = Answer

    def __init__(
        self,
        origin: Origin,
        options: HttpOptions,
        context: ssl.SSLContext | None,
        addresses: SharedAddresses,
        proxy: Proxy | None = None,
    ) -> None:
        super().__init__(origin.host, origin.port)
        self.origin = origin
        self.proxy = proxy
        self._options = options
        self._context = context
        self._addresses = addresses
        self._place = Place(proxy.host, proxy.port) if proxy else Place(origin.host, origin.port)
        self._address = ""
        self._asking = False
        self._live = Live()

    def connect(self) -> None:
        """Open the socket. Raises SourceUnavailable; through a proxy, AccessDenied too."""
        self._give()
        try:
            self.sock = self._through(self.proxy) if self.proxy else self._open_any()
        except OSError as e:
            raise net.of_connect(e, self.origin.host, self.origin.port, self._options.connect_timeout) from None
        except UnicodeError:
            raise net.unresolved(self._place.host) from None

    def _open_any(self) -> socket.socket:
        """To the address that is least used, or the next where that fails."""
        dialler = self._dialler()
        while True:
            dialled = dialler.dial()
            self._address = dialled.address
            try:
                return self._secure(dialled.sock)
            except OSError as e:
                self._address = ""
                dialler.spoil(dialled, e)
                if self._live.aborted:
                    raise

    def _through(self, proxy: Proxy) -> socket.socket:
        try:
            dialled = self._dialler().dial()
        except OSError as e:
            raise net.of_proxy_connect(e, proxy.name, self._options.connect_timeout) from None
        sock, self._address = dialled
        try:
            if self._context is not None:
                sock.settimeout(self._options.connect_timeout)
                open_tunnel(sock, self.origin, proxy, USER_AGENT)
        except WeightdError:
            self.blame()
            sock.close()
            raise
        return self._secure(sock)

    def _dialler(self) -> Dialler:
        return Dialler(self._place, self._addresses, self._live, self._options.connect_timeout)

    def _secure(self, sock: socket.socket) -> socket.socket:
        """With TLS, where that is wanted. Closes `sock` when that fails."""
        try:
            sock.settimeout(self._options.connect_timeout)
            if self._context is not None:
                sock = self._context.wrap_socket(sock, server_hostname=self.origin.host, do_handshake_on_connect=False)
                self._live.watch(sock)
                sock.do_handshake()
            sock.settimeout(self._options.read_timeout)
        except BaseException:
            sock.close()
            raise
        return sock

    def ask(self, target: Target, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        """Send a GET and read the answer's head. Raises OSError and HTTPException as http.client does, and what
        `connect` raises."""
        plain = self.proxy if self._context is None else None  # A proxy that reads the request.
        self.putrequest("GET", target.url if plain else target.path, skip_host=True, skip_accept_encoding=True)
        self.putheader("Host", target.origin.header)
        if plain and plain.authorization:
            self.putheader("Proxy-Authorization", plain.authorization)
        if target.authorization:
            self.putheader("Authorization", target.authorization)
        for name, value in headers.items():
            self.putheader(name, value)
        self._asking = True
        try:
            self.endheaders()
            return self.getresponse()
        finally:
            self._asking = False

    def abort(self) -> None:
        """From another thread: whatever blocks on the socket, also the connect, ends now. Idempotent."""
        self._live.abort()

    def blame(self) -> None:
        """Its address was slow, stalled or broke off: others go before it for a while."""
        if address := self._address:
            self._addresses.failed(self._place, address)

    @property
    def avoided(self) -> bool:
        """Whether another address of its host is better now."""
        return self._address != "" and self._addresses.avoided(self._place, self._address)

    def close(self) -> None:
        """Idempotent."""
        super().close()
        # http.client closes after the head of an answer that ends with its connection, whose body is still to come.
        if not self._asking:
            self._give()

    def _give(self) -> None:
        address, self._address = self._address, ""
        if address:
            self._addresses.give(self._place, address)

    def usable(self) -> bool:
        """Open, and silent as an idle connection is: neither ended nor sending what nobody asked for."""
        if self.sock is None or self._live.aborted:
            return False
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return not poll.poll(0)


class ConnectionPool:
    """Idle connections by origin. Thread-safe; opens no more than it is asked for, keeps `connections_per_host`.

    `gates`, `routes` and `addresses` are those of all pools that load the same origins together; by default its
    own. For `timed`, `seconds` and `clock` see `Idle`.
    """

    def __init__(
        self,
        options: HttpOptions,
        gates: SharedGates | None = None,
        routes: SharedRoutes | None = None,
        addresses: SharedAddresses | None = None,
        *,
        timed: bool = True,
        seconds: float = IDLE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options = options
        self._lock = threading.Lock()
        self._idle: Idle[Origin, Connection] = Idle(
            Connection.close, options.connections_per_host, timed=timed, seconds=seconds, clock=clock
        )
        self._context: ssl.SSLContext | None = None
        self.addresses: SharedAddresses = addresses or Addresses()
        self.gates: SharedGates = gates or Gates(options.connections_per_host)
        # Whoever asks has its answer, or a fault, after these two; then the next one asks.
        self.routes: SharedRoutes = routes or Routes(options.connect_timeout + options.read_timeout)

    def take(self, origin: Origin) -> tuple[Connection, bool]:
        """A connection, and whether it was used before. A fresh one connects when it is asked."""
        while (idle := self._idle.take(origin)) is not None:
            if idle.usable() and not idle.avoided:
                return idle, True
            idle.close()
        return self.fresh(origin), False

    def fresh(self, origin: Origin) -> Connection:
        """A connection that was never used."""
        context = self.context() if origin.scheme == "https" else None
        return Connection(origin, self.options, context, self.addresses, self.options.proxies.of(origin))

    def shown(self, url: str) -> str:
        """An encoded URL for people: where a request for it goes, without credentials."""
        proxy = self.options.proxies.of(target(url).origin)
        return redact(url) + (net.through(proxy.name) if proxy else "")

    def give(self, connection: Connection) -> None:
        """Back for reuse, if it can be."""
        if connection.usable():
            self._idle.give(connection.origin, connection)
        else:
            connection.close()

    def context(self) -> ssl.SSLContext:
        """Made once: loading the authorities takes tens of milliseconds. Raises ConfigError."""
        with self._lock:
            if self._context is None:
                self._context = _context(self.options.ca_file)
            return self._context

    def close(self) -> None:
        """Close the idle ones; those in use are closed as they come back. Idempotent."""
        self._idle.close()


def _context(ca_file: str) -> ssl.SSLContext:
    named, file = ("http.ca_file", ca_file) if ca_file else ("SSL_CERT_FILE", os.environ.get("SSL_CERT_FILE", ""))
    try:
        if file:
            # OpenSSL is silent about a file of the environment that it cannot read, and then trusts nobody.
            Path(file).open("rb").close()
        return ssl.create_default_context(cafile=ca_file or None)
    except OSError as e:
        raise ConfigError(
            f"{named} {file!r} cannot be used: {e.strerror or type(e).__name__}",
            remedy="Give a PEM file of trusted authorities.",
        ) from None
