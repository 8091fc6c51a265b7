"""Open a socket to a host that may have several addresses, some of which do not answer."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar

from weightd.core.spread import Spread

STAGGER_S = 0.5
"""After which the next address is tried beside one that has not answered yet (RFC 8305 §5 has 0.25 s for people)."""
AnySocket = TypeVar("AnySocket", bound=socket.socket)


class Place(NamedTuple):
    """What a connection is opened to."""

    host: str
    port: int


class SharedAddresses(Protocol):
    """`Addresses`, wherever they are; see `weightd.sources.shared`."""

    def known(self, place: Place, addresses: Sequence[str]) -> None: ...
    def take(self, place: Place, among: Sequence[str]) -> str | None: ...
    def give(self, place: Place, address: str) -> None: ...
    def failed(self, place: Place, address: str) -> None: ...
    def avoided(self, place: Place, address: str) -> bool: ...


class Live:
    """The sockets that one thread works with, and another may abort."""

    def __init__(self) -> None:
        self.aborted = False
        self._sockets: list[socket.socket] = []

    def watch(self, sock: AnySocket) -> AnySocket:
        """From now on `abort` reaches it. Raises ConnectionAbortedError when that was called."""
        self._sockets = [s for s in self._sockets if s.fileno() >= 0] + [sock]
        if self.aborted:
            raise ConnectionAbortedError("aborted")
        return sock

    def abort(self) -> None:
        """Whatever blocks on one of them, also the connect, ends now. Idempotent."""
        self.aborted = True
        for sock in self._sockets:
            try:
                # Not SSLSocket.shutdown: it would turn a read that follows into one of bare ciphertext.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            except OSError:
                pass  # Not connected, or closed already: nothing blocks on it.


class Addresses:
    """How the connections of all threads are spread over the addresses of each host."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spreads: dict[Place, Spread] = {}

    def known(self, place: Place, addresses: Sequence[str]) -> None:
        with self._lock:
            self._spreads.setdefault(place, Spread()).known(addresses)

    def take(self, place: Place, among: Sequence[str]) -> str | None:
        with self._lock:
            return self._spreads[place].take(among, time.monotonic())

    def give(self, place: Place, address: str) -> None:
        with self._lock:
            self._spreads[place].give(address)

    def failed(self, place: Place, address: str) -> None:
        with self._lock:
            self._spreads[place].failed(address, time.monotonic())

    def avoided(self, place: Place, address: str) -> bool:
        with self._lock:
            return self._spreads[place].avoided(address, time.monotonic())


class Dialled(NamedTuple):
    """A connected, blocking socket; its address counts as used until `Addresses.give`."""

    sock: socket.socket
    address: str


class _Try(NamedTuple):
    sock: socket.socket
    address: str


class Dialler:
    """One connection to be made, by one thread. `timeout` in seconds, for all addresses together."""

    def __init__(self, place: Place, addresses: SharedAddresses, live: Live, timeout: float) -> None:
        self._place, self._addresses, self._live, self._timeout = place, addresses, live, timeout
        self._tried: list[str] = []
        self._running: list[_Try] = []
        self._failure: OSError | None = None
        self._found: dict[str, tuple[socket.AddressFamily, object]] | None = None

    def dial(self) -> Dialled:
        """The first address that answers, of those not tried before: the best one gets a start of STAGGER_S before the
        next is tried beside it. Raises OSError, as the last address did."""
        if self._found is None:
            self._resolve()
        until = time.monotonic() + self._timeout
        won: _Try | None = None
        try:
            while won is None:
                more = self._begin()
                if not more and not self._running:
                    raise self._failure or OSError("no address")
                left = until - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                won = self._wait(min(left, STAGGER_S) if more else left)
        finally:
            self._end(won)
        won.sock.setblocking(True)
        return Dialled(*won)

    def spoil(self, dialled: Dialled, failure: OSError) -> None:
        """What `dial` returned is no use after all, for this reason; its socket is closed already."""
        self._lost(dialled.address, failure)

    def _resolve(self) -> None:
        entries = socket.getaddrinfo(*self._place, type=socket.SOCK_STREAM)
        self._found = {str(address[0]): (family, address) for family, _, _, _, address in reversed(entries)}
        self._addresses.known(self._place, list(reversed(self._found)))

    def _begin(self) -> bool:
        """Start one more attempt, if an address is left; one that fails at once makes room for the next."""
        # Of what this thread was told: another may have been told of other addresses meanwhile.
        left = [a for a in reversed(self._found or {}) if a not in self._tried]
        address = self._addresses.take(self._place, left)
        if address is None:
            return False
        self._tried.append(address)
        family, full = (self._found or {})[address]
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as e:  # A host without IPv6 whose DNS has it.
            self._lost(address, e)
            return True
        self._running.append(_Try(sock, address))
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            sock.connect(full)  # type: ignore[arg-type]
        except BlockingIOError:
            pass
        except OSError as e:
            self._drop(self._running[-1], e)
            return True
        # Not before: a shutdown does nothing to a socket that has not begun to connect.
        self._live.watch(sock)
        return True

    def _wait(self, seconds: float) -> _Try | None:
        poll = select.poll()
        for one in self._running:
            poll.register(one.sock, select.POLLOUT)
        ready = {fd for fd, _ in poll.poll(seconds * 1000)} if self._running else set()
        for one in [one for one in self._running if one.sock.fileno() in ready]:
            error = one.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if self._live.aborted:
                raise ConnectionAbortedError("aborted")
            if not error:
                return one
            self._drop(one, OSError(error, os.strerror(error)))
        return None

    def _drop(self, one: _Try, failure: OSError) -> None:
        self._running.remove(one)
        one.sock.close()
        self._lost(one.address, failure)

    def _lost(self, address: str, failure: OSError) -> None:
        self._failure = failure
        if not self._live.aborted:
            self._addresses.failed(self._place, address)
        self._addresses.give(self._place, address)

    def _end(self, won: _Try | None) -> None:
        """Close what is still under way. What began before the winner, and had not answered, is bad for a while."""
        before = True
        for one in self._running:
            if one is won:
                before = False
                continue
            one.sock.close()
            if before and not self._live.aborted:
                self._addresses.failed(self._place, one.address)
            self._addresses.give(self._place, one.address)
        self._running.clear()
