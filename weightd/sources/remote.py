"""In a receiver process: what the daemon keeps for all readers, asked through the channel of the one that needs it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain

import msgspec

from weightd.sources.connection import ConnectionPool, HttpOptions
from weightd.sources.dial import Place
from weightd.sources.messages import Ask, Channel, Plain, Told, restored
from weightd.sources.routes import Headers, Route
from weightd.sources.urls import Origin


def _ask(channel: Channel, name: str, *arguments: Plain) -> Told:
    channel.send(Ask(name, arguments))
    answer, _ = channel.receive()
    assert isinstance(answer, Told)
    if answer.failed is not None:
        raise restored(answer.failed)
    return answer


class RemoteGate:
    """See `weightd.sources.gates.Gate`: the same calls, answered by the daemon, which knows by itself whether the
    reader was aborted, and how much moved."""

    def __init__(self, channel: Channel, origin: Origin) -> None:
        self._channel, self._origin = channel, origin

    @property
    def limit(self) -> int:
        return int(_ask(self._channel, "gate.limit", *self._origin).value or 1)

    def enter(self, aborted: Callable[[], bool]) -> bool:
        return bool(_ask(self._channel, "gate.enter", *self._origin).value)

    def leave(self) -> None:
        _ask(self._channel, "gate.leave", *self._origin)

    def delay(self) -> float:
        return float(_ask(self._channel, "gate.delay", *self._origin).value or 0.0)

    def moved(self, count: int) -> None:
        """The answer to each read says it."""

    def throttled(self, retry_after: float) -> None:
        _ask(self._channel, "gate.throttled", *self._origin, retry_after)

    def wake(self) -> None:
        """Who waits, waits in the daemon."""


class RemoteGates:
    """See `weightd.sources.gates.Gates`."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def of(self, origin: Origin) -> RemoteGate:
        return RemoteGate(self._channel, origin)


class RemoteRoutes:
    """See `weightd.sources.routes.Routes`; of the file that is open on the channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def take(self, url: str, aborted: Callable[[], bool]) -> Route | None:
        return _ask(self._channel, "route.take").route

    def learned(self, url: str, address: str, headers: Headers = (), until: float = math.inf) -> None:
        _ask(self._channel, "route.learned", address, until, *chain.from_iterable(headers))

    def done(self, url: str) -> None:
        _ask(self._channel, "route.done")

    def where(self, url: str) -> str:
        return str(_ask(self._channel, "route.where").value)

    def current(self, url: str, serial: int) -> bool:
        return bool(_ask(self._channel, "route.current", serial).value)

    def refused(self, url: str, serial: int) -> bool:
        return bool(_ask(self._channel, "route.refused", serial).value)

    def wake(self) -> None:
        """Who waits, waits in the daemon."""


class RemoteAddresses:
    """See `weightd.sources.dial.Addresses`."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def known(self, place: Place, addresses: Sequence[str]) -> None:
        _ask(self._channel, "address.known", *place, *addresses)

    def take(self, place: Place, among: Sequence[str]) -> str | None:
        value = _ask(self._channel, "address.take", *place, *among).value
        return None if value is None else str(value)

    def give(self, place: Place, address: str) -> None:
        with suppress(OSError, EOFError):  # When the channel has ended, the daemon has given it back by itself.
            _ask(self._channel, "address.give", *place, address)

    def failed(self, place: Place, address: str) -> None:
        _ask(self._channel, "address.failed", *place, address)

    def avoided(self, place: Place, address: str) -> bool:
        return bool(_ask(self._channel, "address.avoided", *place, address).value)


def make_pool(options: HttpOptions, channel: Channel) -> ConnectionPool:
    """Connections of one channel, which share with the daemon what is known of origins. One reader at a time needs no
    more than one idle connection to each; how many may be under way is the daemon's affair. So is when the channel was
    idle for too long: nobody answers there to the address that a closed connection gives back."""
    options = msgspec.structs.replace(options, connections_per_host=1)
    return ConnectionPool(options, RemoteGates(channel), RemoteRoutes(channel), RemoteAddresses(channel), timed=False)
