"""In a receiver process: the daemon's gates, asked through the channel of the reader that needs them."""

from __future__ import annotations

from collections.abc import Callable

from weightd.sources.connection import ConnectionPool, HttpOptions
from weightd.sources.messages import Ask, Channel, Told
from weightd.sources.urls import Origin


class RemoteGate:
    """See `weightd.sources.gates.Gate`: the same calls, answered by the daemon. It counts what moved by itself."""

    def __init__(self, channel: Channel, origin: Origin) -> None:
        self._channel, self._origin = channel, origin

    def _ask(self, name: str, *arguments: float) -> str | int | float | bool | None:
        self._channel.send(Ask(name, (*self._origin, *arguments)))
        answer, _ = self._channel.receive()
        assert isinstance(answer, Told)
        return answer.value

    def enter(self, aborted: Callable[[], bool]) -> bool:
        """The daemon knows by itself when the reader is aborted."""
        return bool(self._ask("enter"))

    def leave(self) -> None:
        self._ask("leave")

    def delay(self) -> float:
        return float(self._ask("delay") or 0.0)

    def moved(self, count: int) -> None:
        """The daemon sees it from the answer to each read."""

    def throttled(self, retry_after: float) -> None:
        self._ask("throttled", retry_after)

    def wake(self) -> None:
        """Who waits, waits in the daemon."""


class RemoteGates:
    """See `weightd.sources.gates.Gates`."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def of(self, origin: Origin) -> RemoteGate:
        return RemoteGate(self._channel, origin)


def make_pool(options: HttpOptions, channel: Channel) -> ConnectionPool:
    """Connections of one channel, behind the daemon's gates."""
    return ConnectionPool(options, gates=RemoteGates(channel))
