"""Which of a host's several addresses the next connection goes to: the least used one that is not known to be bad."""

from __future__ import annotations

from collections.abc import Sequence

REST_S = 60.0
"""For as long an address that failed goes behind the others."""


class Spread:
    """Of one host and port. Times are seconds of one monotonic clock. Not thread-safe."""

    def __init__(self) -> None:
        self._known: Sequence[str] = ()
        self._used: dict[str, int] = {}
        self._bad_until: dict[str, float] = {}

    def known(self, addresses: Sequence[str]) -> None:
        """What DNS says now."""
        self._known = tuple(addresses)
        self._bad_until = {a: until for a, until in self._bad_until.items() if a in self._known}

    def take(self, among: Sequence[str], now: float) -> str | None:
        """The address for one more connection, which counts until `give`; one of `among`, whose order decides between
        equals: what DNS told whoever asks, and others may have been told otherwise. None when there are none."""
        if not among:
            return None
        best = min(among, key=lambda a: (self._bad(a, now), self._used.get(a, 0)))
        self._used[best] = self._used.get(best, 0) + 1
        return best

    def give(self, address: str) -> None:
        """A connection has ended, or did not come about."""
        self._used[address] -= 1
        if not self._used[address]:
            del self._used[address]

    def failed(self, address: str, now: float) -> None:
        """It refused, did not answer, broke off, stalled or was slow."""
        if address in self._known:
            self._bad_until[address] = now + REST_S

    def avoided(self, address: str, now: float) -> bool:
        """Whether it is bad, and there is a better one."""
        return self._bad(address, now) and not all(self._bad(a, now) for a in self._known)

    def _bad(self, address: str, now: float) -> bool:
        return now < self._bad_until.get(address, now)
