"""Who leaves a full tier. Decided here, done by the engine; see docs/adr/0006.

What a holding is worth is the waiting that it saves for each byte it takes: how often it will be asked for × the
seconds to bring it back ÷ bytes. How often is guessed from its uses so far (`Use.rate_at`): once in its mean gap
between uses, and twice as long as it is idle now. So it is the models that are used again and again that stay, in
whatever tempo a host's models are used, and what was used a hundred times this morning, and not since, is soon not
worth a hundred. Which estimates were tried, on what, is in docs/adr/0006.

Times are Unix seconds, sizes bytes.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from typing import Generic, TypeVar

import msgspec

K = TypeVar("K", bound=Hashable)
B = TypeVar("B", bound=Hashable)

FOREVER_S = 1e9
"""Gaps count up to here, and costs, also that of what can no longer be brought back."""
FIRST_GAP_S = 12 * 3600.0
"""Between a first use and the next, as long as nobody knows. Longer than that of a model in use, so that what is passed
once does not displace those; not longer than to the next working day."""
NEWEST = 0.3
"""Share of the newest gap in the mean."""
IDLE_SHARE = 2.0
"""The longer something has been idle, the longer it will be: by so many times, which is more than one because most of
what is idle for long is not asked for again."""
MOMENT_S = 60.0
"""Uses so near to one another are one: those of the processes that serve a model together, or of one that fails and is
started again."""


class Use(msgspec.Struct, frozen=True):
    """How often something is used: `weight` times in FIRST_GAP_S, as a moving mean over its gaps; 0 for never. It is
    idle since `at`. It should be kept for as long as anything is known of a model, also while it is in no tier.

    A clock that was set back, or forth and back, does no harm: a use in the future counts as one as far in the past.
    """

    weight: float = 0.0
    at: float = 0.0

    @property
    def gap(self) -> float:
        """Seconds from one use to the next, in the mean."""
        return FIRST_GAP_S / self.weight if self.weight > FIRST_GAP_S / FOREVER_S else FOREVER_S

    def touched(self, now: float) -> Use:
        """Used once more."""
        idle = abs(now - self.at)
        if not self.weight:
            return Use(1.0, now)
        if idle < MOMENT_S:
            return self.ended(now)
        return Use(FIRST_GAP_S / ((1 - NEWEST) * self.gap + NEWEST * idle), now)

    def ended(self, now: float) -> Use:
        """A use that began before has ended, and it is idle from now on."""
        return Use(self.weight, now)

    def expected(self, now: float) -> Use:
        """Brought ahead of its use: as if it was first used now, if it was not used more often; however often that is
        said."""
        return Use(max(1.0, self.weight), now)

    def rate_at(self, now: float) -> float:
        """Uses to be expected in a second."""
        return 1 / (self.gap + IDLE_SHARE * abs(now - self.at)) if self.weight else 0.0


NEVER = Use()
_KEPT = 2**62
"""Holders that never leave."""


class Holding(msgspec.Struct, Generic[K, B], frozen=True):
    """Something that is wanted as a whole, a snapshot of a model, in one tier. `blobs`: those of it that are resident
    there, with their sizes; others may have some of them too.

    `cost`: seconds to bring them back into this tier, of which `delay` do not depend on their sizes. `protected`:
    leased, pinned, being filled or just adopted: it and all its blobs stay.
    """

    key: K
    blobs: Mapping[B, int]
    use: Use = NEVER
    cost: float = 0.0
    delay: float = 0.0
    protected: bool = False

    @property
    def size(self) -> int:
        return sum(self.blobs.values())


class Plan(msgspec.Struct, Generic[K, B], frozen=True):
    """`victims` leave the tier, the least valuable first, and with them all of `blobs`, which are `freed` bytes.
    Other blobs of the victims stay for whoever else has them."""

    victims: tuple[K, ...] = ()
    blobs: tuple[B, ...] = ()
    freed: int = 0


def value(holding: Holding[K, B], now: float) -> float:
    """Of one that shares no blob: seconds of waiting that each of its bytes saves in each second. Infinite without
    bytes."""
    size = holding.size
    return holding.use.rate_at(now) * min(holding.cost, FOREVER_S) / size if size else math.inf


def plan_eviction(
    holdings: Iterable[Holding[K, B]], need: int, now: float, unnamed: Mapping[B, int] | None = None
) -> Plan[K, B] | None:
    """What leaves so that at least `need` bytes do; None where all that may leave is less.

    `unnamed`: resident blobs, with sizes; those that no holding has go before any holding does. Then the least
    valuable go, of equals the one that was used longest ago, then the first given. Nothing goes in vain: without any
    one of the victims, or of the unnamed blobs that go, too little would.
    """
    going = _Going(holdings, unnamed or {}, now)
    going.take(need)
    if going.freed < need:
        return None
    going.spare(need)
    return going.plan()


class _Going(Generic[K, B]):
    """What is to leave, while it is being decided."""

    def __init__(self, holdings: Iterable[Holding[K, B]], unnamed: Mapping[B, int], now: float) -> None:
        self._now = now
        self._mortal: list[Holding[K, B]] = []
        self._holders: dict[B, int] = {}
        """Of each blob, how many that stay have it."""
        for holding in holdings:
            # Whose protected blobs have one holder more than can ever leave.
            claim = _KEPT if holding.protected else 1
            for blob in holding.blobs:
                self._holders[blob] = self._holders.get(blob, 0) + claim
            if not holding.protected:
                self._mortal.append(holding)
        self._unnamed = [(blob, size) for blob, size in unnamed.items() if blob not in self._holders]
        self._loose: list[tuple[B, int]] = []
        self._victims: list[Holding[K, B]] = []
        self.freed = 0

    def take(self, need: int) -> None:
        """Until at least `need` bytes are free, or nothing is left to take."""
        for blob, size in self._unnamed:
            if self.freed >= need:
                return
            self._loose.append((blob, size))
            self.freed += size
        if self.freed < need:
            for holding in self._ranked():
                self._drop(holding)
                if self.freed >= need:
                    return

    def _drop(self, holding: Holding[K, B]) -> None:
        self._victims.append(holding)
        for blob, size in holding.blobs.items():
            self._holders[blob] = left = self._holders[blob] - 1
            if not left:
                self.freed += size

    def spare(self, need: int) -> None:
        """Whoever is not needed stays, the most valuable first. One pass is enough: the more others stay, the fewer
        bytes are too many."""
        victims: list[Holding[K, B]] = []
        for holding in reversed(self._victims):
            back = sum(size for blob, size in holding.blobs.items() if not self._holders[blob])
            if self.freed - back >= need:
                self._keep(holding, back)
            else:
                victims.append(holding)
        self._victims = victims[::-1]
        loose: list[tuple[B, int]] = []
        for blob, size in reversed(self._loose):
            if self.freed - size >= need:
                self.freed -= size
            else:
                loose.append((blob, size))
        self._loose = loose[::-1]

    def _keep(self, holding: Holding[K, B], back: int) -> None:
        self.freed -= back
        for blob in holding.blobs:
            self._holders[blob] += 1

    def plan(self) -> Plan[K, B]:
        blobs = [blob for blob, _ in self._loose]
        seen = set[B]()
        for holding in self._victims:
            blobs += [b for b in holding.blobs if not self._holders[b] and b not in seen]
            seen.update(holding.blobs)
        return Plan(tuple(h.key for h in self._victims), tuple(blobs), self.freed)

    def _ranked(self) -> list[Holding[K, B]]:
        """Those that may leave, the least valuable first."""
        rates = [h.use.rate_at(self._now) for h in self._mortal]
        demand = dict[B, float]()
        for holding, rate in zip(self._mortal, rates, strict=True):
            for blob in holding.blobs:
                demand[blob] = demand.get(blob, 0.0) + rate
        return sorted(self._mortal, key=lambda h: (self._worth(h, demand), -abs(self._now - h.use.at)))

    def _worth(self, holding: Holding[K, B], demand: Mapping[B, float]) -> float:
        """As `value`, where blobs are shared: one that several have is charged to each of them in proportion to its
        rate, because it leaves only when all of them do; one that a protected holding has is charged to nobody."""
        free, charged = 0, 0.0
        for blob, size in holding.blobs.items():
            if self._holders[blob] >= _KEPT:
                continue
            if not demand[blob]:
                return 0.0
            free += size
            charged += size / demand[blob]
        if not free:
            return math.inf
        cost = min(holding.cost, FOREVER_S)
        delay = min(holding.delay, cost)
        # rate × cost ÷ (rate × charged): the rate falls out.
        return (delay + (cost - delay) * free / holding.size) / charged
