"""Questions whose answer is small: asked in a thread, on the connections, gates and proxies of all transfers.

A token stays at the origin that is asked first. What a redirect that is not permanent leads to, at another origin or
where the caller says so, is not asked but told: that is an address to read from.
"""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Final, NamedTuple, Self

from weightd.core.backoff import full_jitter
from weightd.core.errors import ManifestError, SourceUnavailable
from weightd.core.ranges import THROTTLED, asked_to_wait, is_transient, single
from weightd.core.refs import redact
from weightd.sources import net
from weightd.sources.connection import USER_AGENT, Connection, ConnectionPool
from weightd.sources.quota import LONGEST_S, Quotas
from weightd.sources.urls import REDIRECTS, Trail, target

Aborted = Callable[[], bool]

MAX_BODY: Final = 64 << 20
"""Bytes; a page of 1000 files has 400 KB."""
WAITS: Final = 3
"""How often one question waits for a quota to begin anew."""
_CHECK_S = 0.1
_PERMANENT = frozenset({301, 308})


class Told(NamedTuple):
    """`url` is what answered, `leads` the address that it led to and that was not asked, or ""; both are secrets."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str
    leads: str = ""

    def __repr__(self) -> str:
        return f"<Told {self.status} {redact(self.url)} {len(self.body)} bytes>"


def wait(seconds: float, aborted: Aborted) -> None:
    """In this thread. Ends soon once `aborted`."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not aborted():
        time.sleep(min(left, _CHECK_S))


class Asker:
    """Any thread. `pause` stands in for `wait` in tests."""

    def __init__(self, pool: ConnectionPool, quotas: Quotas, pause: Callable[[float, Aborted], None] = wait) -> None:
        self._pool, self._quotas, self._pause = pool, quotas, pause

    def get(
        self,
        url: str,
        headers: Mapping[str, str],
        aborted: Aborted,
        *,
        body: bool = True,
        until: Callable[[str], bool] = lambda _: False,
    ) -> Told:
        """The final answer, whatever its status; asked again while the fault may pass. `headers` are for the origin of
        `url` alone. Without `body`, one is not read. An address for which `until` is true is not asked.

        Raises SourceUnavailable, ManifestError for a body that is too long, and what stands between us and the origin.
        """
        attempt = waits = 0
        with _Watch(aborted) as watch:
            while True:
                self._before(url, aborted)
                last = attempt + 1 >= self._pool.options.attempts
                seconds = full_jitter(attempt, random.random(), base=self._pool.options.pause)
                try:
                    told = self._follow(url, headers, watch, body=body, until=until)
                except SourceUnavailable:
                    if last or aborted():
                        raise
                else:
                    reset = self._quotas.reset(told.headers) if told.status == 429 else None
                    if reset is not None and waits < WAITS:
                        waits += 1
                        continue  # `_before` waits for it.
                    if last or reset is not None or not is_transient(told.status):
                        return told
                    seconds = max(seconds, asked_to_wait(told.headers, time.time()))
                attempt += 1
                self._pause(seconds, aborted)

    def _before(self, url: str, aborted: Aborted) -> None:
        to = target(url)
        seconds = max(self._pool.gates.of(to.origin).delay(), self._quotas.wait(to.origin, to.path))
        if seconds > 0:
            self._pause(min(seconds, LONGEST_S), aborted)
        if aborted():
            raise net.aborted(self._pool.shown(url))

    def _follow(
        self, url: str, headers: Mapping[str, str], watch: _Watch, *, body: bool, until: Callable[[str], bool]
    ) -> Told:
        trail, first = Trail(url), target(url).origin
        while True:
            here = trail.url
            own = headers if target(here).origin == first else {}
            told = self._ask(here, own, watch, body=body)
            location = told.headers.get("location")
            if told.status not in REDIRECTS or location is None:
                return told
            trail.follow(told.status, location)
            elsewhere = target(trail.url).origin != target(here).origin
            if told.status not in _PERMANENT and (elsewhere or until(trail.url)):
                return told._replace(leads=trail.url)

    def _ask(self, url: str, headers: Mapping[str, str], watch: _Watch, *, body: bool) -> Told:
        to, where = target(url), self._pool.shown(url)
        gate = self._pool.gates.of(to.origin)
        if not gate.enter(watch.aborted):
            raise net.aborted(where)
        try:
            connection, response = self._open(url, headers, watch)
            try:
                found = single(response.getheaders())
                self._quotas.count(to.origin, to.path, found)
                if response.status == 407 and connection.proxy is not None:
                    raise net.proxy_denied(connection.proxy.name)
                if response.status in THROTTLED and self._quotas.reset(found) is None:
                    gate.throttled(asked_to_wait(found, time.time()))
                told = Told(response.status, found, self._read(response, where) if body else b"", url)
            finally:
                self._end(connection, response)
            return told
        except (OSError, http.client.HTTPException) as e:
            if watch.aborted():
                raise net.aborted(where) from None
            raise net.of_read(e, where, self._pool.options.read_timeout) from None
        finally:
            gate.leave()

    def _open(self, url: str, headers: Mapping[str, str], watch: _Watch) -> tuple[Connection, http.client.HTTPResponse]:
        to = target(url)
        asked = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": USER_AGENT, **headers}
        connection, reused = self._pool.take(to.origin)
        try:
            return connection, watch.on(connection).ask(to, asked)
        except (ConnectionError, http.client.HTTPException):
            connection.close()
            if not reused or watch.aborted():
                raise
        except BaseException:
            connection.close()
            raise
        connection = self._pool.fresh(to.origin)  # The idle one was closed just now.
        try:
            return connection, watch.on(connection).ask(to, asked)
        except BaseException:
            connection.close()
            raise

    @staticmethod
    def _read(response: http.client.HTTPResponse, where: str) -> bytes:
        data = response.read(MAX_BODY + 1)
        if len(data) > MAX_BODY:
            raise ManifestError(f"{where} answers with more than {MAX_BODY} bytes")
        if response.length:
            raise http.client.IncompleteRead(b"")
        return data

    def _end(self, connection: Connection, response: http.client.HTTPResponse) -> None:
        """Back to the pool, where nothing of the answer is left in it."""
        if not response.isclosed() and response.length is not None and response.length <= 1 << 16:
            with suppress(OSError, http.client.HTTPException):
                response.read()
        whole = response.isclosed()
        response.close()
        if whole:
            self._pool.give(connection)
        else:
            connection.close()


class _Watch:
    """Ends what a connection blocks in, once `aborted`."""

    def __init__(self, aborted: Aborted) -> None:
        self.aborted = aborted
        self._over = threading.Event()
        self._connection: Connection | None = None
        self._thread = threading.Thread(target=self._run, name="weightd-asker-watch", daemon=True)

    def on(self, connection: Connection) -> Connection:
        self._connection = connection
        return connection

    def _run(self) -> None:
        while not self._over.wait(_CHECK_S):
            connection = self._connection
            if connection is not None and self.aborted():
                connection.abort()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
