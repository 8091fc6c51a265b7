"""Receive ranges of one file over HTTP/1.1, straight from the socket into the caller's memory."""

from __future__ import annotations

import http.client
import time
from collections.abc import Mapping

from weightd.core.errors import SizeMismatch, SourceUnavailable, WeightdError
from weightd.core.manifest import FileSpec
from weightd.core.ranges import (
    THROTTLED,
    Wanted,
    asked_to_wait,
    conditions,
    is_transient,
    judge_body,
    single,
    status_error,
)
from weightd.core.refs import redact
from weightd.sources import net
from weightd.sources.connection import USER_AGENT, Connection, ConnectionPool
from weightd.sources.routes import Route
from weightd.sources.shared import SharedGate
from weightd.sources.urls import REDIRECTS, Origin, Trail, target

_SMALL_BODY = 64 << 10
"""A redirect's body of up to this many bytes is read, to keep its connection; a larger one is cut off."""
_STALE = (400, 401, 403, 404, 410)
"""What a signed address answers when it has expired; S3 answers 400 when its session token has."""
_ADDRESSES = 4
"""Tried for one answer, at most: one that was the newest when it was refused, a fresh one, and some that were renewed
by others meanwhile."""


class HttpReader:
    """Implements `weightd.sources.protocols.Reader`. Connections come from the pool and go back after `finish`."""

    def __init__(self, file: FileSpec, pool: ConnectionPool) -> None:
        self._file = file
        self._pool = pool
        self._where = redact(file.url)
        self._connection: Connection | None = None
        self._response: http.client.HTTPResponse | None = None
        self._length = self._left = 0
        self._aborted = self._late = False
        self._gate: SharedGate | None = None

    def start(self, offset: int, length: int) -> None:
        if length <= 0 or offset < 0 or offset + length > self._file.size:
            raise ValueError(f"bytes {offset}+{length} of a file of {self._file.size}")
        wanted = Wanted(offset, length, self._file.size, self._file.validator, self._file.ranges)
        try:
            self._judge(wanted, self._answer(_headers(wanted)))
        except WeightdError as e:
            raise e.about(file=self._file.path) from None
        self._length = self._left = length

    def _answer(self, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        """From where the file's route leads; where that is refused, once more from a fresh address."""
        url, chances = self._file.url, 2
        for _ in range(_ADDRESSES):
            route, response = self._by_route(headers)
            if response.status not in _STALE or route.asks or route.address == url:
                break
            chances -= self._pool.routes.refused(url, route.serial)
            if not chances:
                break
        return response

    def _by_route(self, headers: Mapping[str, str]) -> tuple[Route, http.client.HTTPResponse]:
        url, routes = self._file.url, self._pool.routes
        route = self._take()
        try:
            response, led = self._follow(route, headers)
            self._learn(route, response.status, led)
        except WeightdError:
            if not route.asks and not self._aborted:
                routes.refused(url, route.serial)
            raise
        finally:
            if route.asks:
                routes.done(url)
        return route, response

    def _take(self) -> Route:
        """Where to ask; with the turn there, unless it is the first address that is asked for all."""
        url, routes = self._file.url, self._pool.routes
        while True:
            self._leave()  # Nobody who waits here holds a turn that the one who asks may need.
            route = routes.take(url, lambda: self._aborted)
            if route is None:
                raise net.aborted(self._where)
            if route.asks:
                return route
            self._enter(self._pool.gates.of(target(route.address).origin))
            # A turn may be long in coming, and an address short in life.
            if routes.current(url, route.serial):
                return route

    def _learn(self, route: Route, status: int, led: str) -> None:
        """Where `route` led, for all readers; or that it led to a server in trouble."""
        url, routes = self._file.url, self._pool.routes
        if is_transient(status) and status not in THROTTLED:
            self._blame()
            if not route.asks:
                routes.refused(url, route.serial)
        elif (route.asks or led != route.address) and (led != url or status < 400):
            routes.learned(url, led, tuple(_secrets(route, led).items()))

    def _judge(self, wanted: Wanted, response: http.client.HTTPResponse) -> None:
        headers = single(response.getheaders())
        try:
            judge_body(wanted, response.status, headers, self._where)
        except SourceUnavailable as e:
            if response.status in THROTTLED:
                e.retry_after = asked_to_wait(headers, time.time()) or None
            raise

    def _follow(self, route: Route, headers: Mapping[str, str]) -> tuple[http.client.HTTPResponse, str]:
        """The answer that is no redirect, and its address."""
        trail, entered = Trail(route.address), not route.asks
        while True:
            self._where = self._pool.shown(trail.url)
            response, entered = self._ask(trail.url, {**headers, **_secrets(route, trail.url)}, entered), False
            if response.status not in REDIRECTS:
                return response, trail.url
            location = response.getheader("Location")
            if location is None:
                raise status_error(response.status, self._where)
            trail.follow(response.status, location)

    def _ask(self, url: str, headers: Mapping[str, str], entered: bool) -> http.client.HTTPResponse:
        to = target(url)
        if not entered:
            self._enter(self._pool.gates.of(to.origin))
        connection, reused = self._connect(to.origin)
        try:
            try:
                self._response = connection.ask(to, headers)
            except (ConnectionError, http.client.HTTPException):
                if not reused or self._aborted:
                    raise
                # The origin closed the idle connection just now: no fault of this request.
                connection = self._use(self._pool.fresh(to.origin))
                self._response = connection.ask(to, headers)
        except (OSError, http.client.HTTPException) as e:
            raise self._fault(e) from None
        except WeightdError:
            if self._aborted:
                raise net.aborted(self._where) from None
            raise
        if self._response.status == 407 and connection.proxy is not None:
            raise net.proxy_denied(connection.proxy.name)
        if self._response.status in THROTTLED and self._gate is not None:
            self._gate.throttled(asked_to_wait(single(self._response.getheaders()), time.time()))
        return self._response

    def _enter(self, gate: SharedGate) -> None:
        """Wait for a turn at this origin, which lasts until the body has ended, or this is closed."""
        self._leave()
        self._gate = gate
        if not gate.enter(lambda: self._aborted):
            self._gate = None
            raise net.aborted(self._where)

    def _leave(self) -> None:
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.leave()

    def _connect(self, origin: Origin) -> tuple[Connection, bool]:
        """The connection of the last answer if it can serve this one, else another."""
        current = self._connection
        if current is not None and current.origin == origin and self._drained() and current.usable():
            return self._use(current), True
        self._release()
        connection, reused = self._pool.take(origin)
        return self._use(connection), reused

    def _use(self, connection: Connection) -> Connection:
        if self._connection is not None and self._connection is not connection:
            self._connection.close()
        self._connection = connection
        if self._aborted:  # `abort` came before there was a connection to abort.
            raise net.aborted(self._where)
        return connection

    def _drained(self) -> bool:
        """Whether nothing of the last answer is left in its connection."""
        response = self._response
        if response is None:
            return True
        if not response.isclosed() and response.length is not None and response.length <= _SMALL_BODY:
            try:
                response.read()
            except (OSError, http.client.HTTPException):
                return False
        return response.isclosed()

    def readinto(self, view: memoryview) -> int:
        response = self._response
        if response is None or self._left <= 0:
            raise ValueError("readinto without start, or beyond the length asked for")
        try:
            count = response.readinto(view[: self._left])
        except http.client.IncompleteRead:
            count = 0
        except (OSError, http.client.HTTPException) as e:
            raise self._fault(e) from None
        if self._aborted:
            raise net.aborted(self._where).about(file=self._file.path)
        if not count:
            self._blame()
            raise net.ended_early(self._where, self._length - self._left, self._length).about(file=self._file.path)
        self._left -= count
        if self._gate is not None:
            self._gate.moved(count)
        return count

    def finish(self) -> None:
        try:
            self._check_end()
        finally:
            self._leave()

    def _check_end(self) -> None:
        response = self._response
        if response is None or self._left:
            raise ValueError(f"finish with {self._left} bytes unread")
        try:
            more = b"" if response.isclosed() else response.read(1)
        except (OSError, http.client.HTTPException) as e:
            raise self._fault(e) from None
        if more:
            raise SizeMismatch(
                f"{self._where} goes on after the promised {self._length} bytes",
                file=self._file.path,
                remedy="Fetch the model again; if its size is given in models.json, correct it.",
            )

    def abort(self, *, slow: bool = False) -> None:
        self._aborted = True
        if (connection := self._connection) is not None:
            self._late = slow and self._gate is not None
            connection.abort()
        if (gate := self._gate) is not None:
            gate.wake()
        self._pool.routes.wake()

    def close(self) -> None:
        try:
            self._leave()
        finally:
            self._release()

    def _release(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        clean = not self._aborted and (self._response is None or self._response.isclosed())
        if self._response is not None:
            self._response.close()
            self._response = None
        if self._late:
            connection.blame()
        if clean:
            self._pool.give(connection)
        else:
            connection.close()

    def _blame(self) -> None:
        if self._connection is not None:
            self._connection.blame()

    def _fault(self, e: OSError | http.client.HTTPException) -> WeightdError:
        if self._aborted:
            error = net.aborted(self._where)
        else:
            error = net.of_read(e, self._where, self._pool.options.read_timeout)
            self._blame()
        return error.about(file=self._file.path)

    def __repr__(self) -> str:
        return f"<HttpReader {self._where} {self._length - self._left} of {self._length}>"


def _secrets(route: Route, url: str) -> dict[str, str]:
    """The route's headers, where `url` is of the origin that they are for."""
    return dict(route.headers) if target(url).origin == target(route.address).origin else {}


def _headers(wanted: Wanted) -> dict[str, str]:
    headers = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": USER_AGENT}
    if wanted.ranged:
        headers["Range"] = f"bytes={wanted.offset}-{wanted.offset + wanted.length - 1}"
    return headers | conditions(wanted.validator)
