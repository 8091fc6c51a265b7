"""Answers what a receiver process asks: for a turn at an origin, the route of its file, an address to connect to.

So what is known of origins is in one place, and counts for the threads of the daemon and all processes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from weightd.core.errors import WeightdError
from weightd.sources.connection import ConnectionPool
from weightd.sources.dial import Place
from weightd.sources.messages import Plain, Told, failed
from weightd.sources.shared import SharedGate
from weightd.sources.urls import Origin

Use = tuple[Place, str]
"""A connection to an address of a host."""


class Desk:
    """For one reader of the file at `url`. `wake` from any thread."""

    def __init__(self, url: str, shared: ConnectionPool, aborted: Callable[[], bool]) -> None:
        self._url, self._shared, self._aborted = url, shared, aborted
        self._gate: SharedGate | None = None
        self._asks = False

    def answer(self, used: Counter[Use], name: str, *arguments: Plain) -> Told:
        """To Ask. `used` counts the addresses of the process's connections."""
        about, _, what = name.partition(".")
        match about:
            case "gate":
                scheme, host, port, *rest = arguments
                gate = self._shared.gates.of(Origin(str(scheme), str(host), int(port or 0)))
                return Told(self._of_gate(gate, what, *rest))
            case "route":
                return self._of_route(what, *arguments)
            case "address":
                host, port, *rest = arguments
                place = Place(str(host), int(port or 0))
                return Told(self._of_address(used, place, what, *(str(a) for a in rest)))
        raise AssertionError(f"nobody knows of {name}")

    def _of_gate(self, gate: SharedGate, what: str, *rest: Plain) -> Plain:
        match what:
            case "enter":
                self._gate = gate
                if not gate.enter(self._aborted):
                    self._gate = None
                return self._gate is not None
            case "leave":
                self._leave()
            case "throttled":
                gate.throttled(float(rest[0] or 0.0))
            case "delay":
                return gate.delay()
            case "limit":
                return gate.limit
        return None

    def _of_route(self, what: str, *rest: Plain) -> Told:
        routes = self._shared.routes
        match what:
            case "take":
                return self._take()
            case "learned":
                address, until, *headers = rest
                pairs = zip(map(str, headers[::2]), map(str, headers[1::2]), strict=True)
                routes.learned(self._url, str(address), tuple(pairs), float(until or 0.0))
            case "where":
                return Told(routes.where(self._url))
            case "current":
                return Told(routes.current(self._url, int(rest[0] or 0)))
            case "refused":
                return Told(routes.refused(self._url, int(rest[0] or 0)))
            case "done":
                self._done()
        return Told()

    def _take(self) -> Told:
        try:
            route = self._shared.routes.take(self._url, self._aborted)
        except WeightdError as e:
            return Told(failed=failed(e))
        self._asks = route is not None and route.asks
        return Told(route=route)

    def _of_address(self, used: Counter[Use], place: Place, what: str, *addresses: str) -> Plain:
        known = self._shared.addresses
        match what:
            case "known":
                known.known(place, addresses)
            case "take":
                address = known.take(place, addresses)
                if address is not None:
                    used[place, address] += 1
                return address
            case "give":
                known.give(place, addresses[0])
                used[place, addresses[0]] -= 1
            case "failed":
                known.failed(place, addresses[0])
            case "avoided":
                return known.avoided(place, addresses[0])
        return None

    def moved(self, count: int) -> None:
        """Bytes came."""
        if self._gate is not None:
            self._gate.moved(count)

    def wake(self) -> None:
        """The reader was aborted: it waits no longer."""
        if (gate := self._gate) is not None:
            gate.wake()
        self._shared.routes.wake()

    def close(self) -> None:
        """The process has ended: what it held of others is free. Idempotent."""
        self._leave()
        self._done()

    def _leave(self) -> None:
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.leave()

    def _done(self) -> None:
        if self._asks:
            self._asks = False
            self._shared.routes.done(self._url)
