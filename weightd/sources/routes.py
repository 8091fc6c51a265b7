"""Where each file is read from: the address that its temporary redirect led to, asked for once for all readers."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from weightd.core.errors import WeightdError
from weightd.core.refs import redact
from weightd.core.signed import good_until, renew_at

MOST = 10_000
"""Files whose routes are remembered. One that was dropped costs a question."""
REST_S = 5.0
"""After a renewal that failed, for as long the address is used that is still good."""
CHECK_S = 0.2
"""How soon one that waits sees that it was aborted, if nobody wakes it."""


Headers = tuple[tuple[str, str], ...]
"""Of a request: they hold secrets, and go to the origin of one address only."""


class Route(NamedTuple):
    """Where to ask now, with `headers`. `serial` names this answer of the routes. With `asks`, `address` may lead
    elsewhere: the caller alone asks it, for all, and calls `done` when it has its answer or none."""

    address: str
    serial: int
    asks: bool
    headers: Headers = ()

    def __repr__(self) -> str:
        return f"<Route {redact(self.address)} {self.serial}{' asks' if self.asks else ''}>"


class Minted(NamedTuple):
    """The address of a file whose own URL is of another scheme than http and https, good until `until`, seconds since
    the epoch, and until what its own signature says. `leads`: it may redirect, and where it leads is what to keep."""

    address: str
    headers: Headers = ()
    until: float = math.inf
    leads: bool = False

    def __repr__(self) -> str:
        return f"<Minted {redact(self.address)}>"


Mint = Callable[[str, Callable[[], bool]], "Minted | None"]
"""From a file's URL to its address now; asked by one thread at a time for each file, which it may block. None once
`aborted`, its other argument, says so. Raises WeightdError."""


@dataclass(slots=True)
class _Known:
    """Of one file. `address` is "" while none is known; times are seconds of the clock, `asked_at` monotonic."""

    address: str = ""
    headers: Headers = ()
    serial: int = 0
    renew_at: float = math.inf
    until: float = math.inf
    asked_at: float = -math.inf
    """When somebody began to ask; -inf while nobody does."""
    served: int = 0
    """`serial` when somebody began to ask."""
    minting: bool = False
    """Who asks, asks a mint, which may have to wait for long and comes back in any case."""


class Routes:
    """By the file's own URL. Any thread, and by messages any process: arguments and results are plain data.

    `patience`: seconds after which one that waits asks too, but not a mint; more than a question takes. `clock`:
    seconds since the epoch.
    """

    def __init__(self, patience: float, clock: Callable[[], float] = time.time) -> None:
        self._patience, self._clock = patience, clock
        self._changed = threading.Condition()
        self._known: dict[str, _Known] = {}
        self._mints: dict[str, Mint] = {}

    def mint(self, scheme: str, mint: Mint) -> None:
        """Files whose URLs are of `scheme` are asked for where `mint` says. Before the first of them is."""
        self._mints[scheme] = mint

    def take(self, url: str, aborted: Callable[[], bool]) -> Route | None:
        """Where to ask for the file. Waits while another asks for an address and none is known; None once `aborted`.

        Raises what a mint raises, where no address is known that is still good.
        """
        mint = self._mints.get(url.partition("://")[0])
        while (route := self._take(url, aborted)) is not None and route.asks and mint is not None:
            asked = self._minted(url, route.serial, mint, aborted)
            if asked is not None:
                return asked
        return route

    def _take(self, url: str, aborted: Callable[[], bool]) -> Route | None:
        late = time.monotonic() + self._patience
        with self._changed:
            while not aborted():
                known, now, ticks = self._of(url), self._clock(), time.monotonic()
                free = not known.minting and ticks >= min(known.asked_at + self._patience, late)
                if free and (not known.address or now >= known.renew_at):
                    known.asked_at, known.served = ticks, known.serial
                    known.minting = url.partition("://")[0] in self._mints
                    return Route(url, known.serial, True)
                if known.address and now < known.until:
                    return Route(known.address, known.serial, False, known.headers)
                self._changed.wait(CHECK_S)
            return None

    def _minted(self, url: str, serial: int, mint: Mint, aborted: Callable[[], bool]) -> Route | None:
        """The route to an address that leads elsewhere; None once another is known, or the old one is to do."""
        leads = False
        try:
            minted = mint(url, aborted)
            if minted is not None and minted.leads:
                leads = True
                self._asked(url)
                return Route(minted.address, serial, True, minted.headers)
            if minted is not None:
                self.learned(url, minted.address, minted.headers, minted.until)
        except WeightdError:
            if not self._good(url):
                raise
        finally:
            if not leads:
                self.done(url)
        return None

    def _asked(self, url: str) -> None:
        """The mint has answered, and the caller goes on to ask what it said."""
        with self._changed:
            known = self._of(url)
            known.minting, known.asked_at = False, time.monotonic()

    def _good(self, url: str) -> bool:
        with self._changed:
            known = self._of(url)
            return known.address != "" and self._clock() < known.until

    def where(self, url: str) -> str:
        """The address that is known, else the file's own."""
        with self._changed:
            return self._of(url).address or url

    def current(self, url: str, serial: int) -> bool:
        """Whether the route `serial` would still be given."""
        with self._changed:
            known = self._of(url)
            return known.serial == serial and known.address != "" and self._clock() < known.until

    def learned(self, url: str, address: str, headers: Headers = (), until: float = math.inf) -> None:
        """Asking `url` led to `address`, which is `url` where the origin does not redirect: then nobody waits again.
        It is good until `until`, seconds since the epoch, and until what its own signature says."""
        with self._changed:
            known, now = self._of(url), self._clock()
            known.address, known.headers, known.serial = address, headers, known.serial + 1
            known.renew_at = known.until = math.inf
            signed = good_until(address) if address != url else None
            end = min(until, math.inf if signed is None else signed)
            # One that comes expired means that a clock is wrong: it is good until it is refused.
            if math.inf > end > now:
                known.until, known.renew_at = end, renew_at(end, now)
            self._changed.notify_all()

    def done(self, url: str) -> None:
        """The caller asked, and `learned` what there was to learn. If that was nothing, the next one asks."""
        with self._changed:
            known = self._of(url)
            known.asked_at, known.minting = -math.inf, False
            if known.serial == known.served and known.address:
                known.renew_at = min(known.until, self._clock() + REST_S)
            self._changed.notify_all()

    def refused(self, url: str, serial: int) -> bool:
        """The address of the route `serial` is of no use. False if it was renewed since; else it is forgotten."""
        with self._changed:
            known = self._of(url)
            if known.serial == serial and known.address != url:
                known.address = ""
            return known.serial == serial

    def wake(self) -> None:
        """Somebody who waits may have been aborted."""
        with self._changed:
            self._changed.notify_all()

    def _of(self, url: str) -> _Known:
        known = self._known.get(url)
        if known is None:
            if len(self._known) >= MOST:
                del self._known[next(iter(self._known))]
            known = self._known[url] = _Known()
        return known
