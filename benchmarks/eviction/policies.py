"""Contenders: weightd's own, by its own code, once with another estimate; and those of the textbooks, which know whole
snapshots.

Who shares a blob with others leaves without it: it goes when the last that has it goes, as in weightd.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Callable

import msgspec

from benchmarks.eviction.simulate import Held, Key, Policy
from benchmarks.eviction.trace import Snapshot, Trace
from weightd.core.eviction import NEVER, Use, plan_eviction

HALF_LIFE_S = 6 * 3600.0


class Weightd:
    """`weightd.core.eviction`, told what the engine tells it. Uses are of refs; snapshots that are no longer the
    current one of their ref count as never used."""

    def __init__(self, never: Use = NEVER) -> None:
        self._never = never
        self._uses: dict[str, Use] = {}
        self._current: dict[str, str] = {}

    def acquired(self, snapshot: Snapshot, now: float, cost: float) -> None:
        self._uses[snapshot.ref] = self._uses.get(snapshot.ref, self._never).touched(now)
        self._current[snapshot.ref] = snapshot.revision

    def released(self, snapshot: Snapshot, now: float) -> None:
        self._uses[snapshot.ref] = self._uses[snapshot.ref].ended(now)

    def victims(self, holdings: list[Held], need: int, now: float) -> tuple[str, ...] | None:
        plan = plan_eviction([msgspec.structs.replace(h, use=self._use(h.key)) for h in holdings], need, now)
        return None if plan is None else plan.blobs

    def _use(self, key: Key) -> Use:
        ref, revision = key
        return self._uses.get(ref, self._never) if self._current.get(ref) == revision else self._never


class Decayed(Use, frozen=True):
    """In place of the mean gap a count of uses that halves every HALF_LIFE_S, as in LRFU (Lee et al., "LRFU: A spectrum
    of policies that subsumes the least recently used and least frequently used policies", IEEE Transactions on
    Computers 50(12), 2001), and once in as long as it is idle now: of the two rates the lower. What weightd had before.
    """

    def touched(self, now: float) -> Decayed:
        return Decayed(self._count(now) + 1, now)

    def ended(self, now: float) -> Decayed:
        return Decayed(self._count(now), now)

    def rate_at(self, now: float) -> float:
        rate, idle = self._count(now) * math.log(2) / HALF_LIFE_S, now - self.at
        return min(rate, 1 / idle) if idle > 0 else rate

    def _count(self, now: float) -> float:
        return self.weight * float(2 ** ((self.at - now) / HALF_LIFE_S))


class Lru:
    """Who was leased last, or had a lease that ended last, stays."""

    def __init__(self) -> None:
        self._last: dict[Key, float] = {}

    def acquired(self, snapshot: Snapshot, now: float, cost: float) -> None:
        self._last[snapshot.key] = now

    def released(self, snapshot: Snapshot, now: float) -> None:
        self._last[snapshot.key] = now

    def victims(self, holdings: list[Held], need: int, now: float) -> tuple[str, ...] | None:
        found = in_order(holdings, need, lambda h: self._last.get(h.key, 0.0))
        return None if found is None else found[1]


class Lfu:
    """Who was leased most often, ever, stays; of equals, who was last."""

    def __init__(self) -> None:
        self._uses = Counter[Key]()
        self._last: dict[Key, float] = {}

    def acquired(self, snapshot: Snapshot, now: float, cost: float) -> None:
        self._uses[snapshot.key] += 1
        self._last[snapshot.key] = now

    def released(self, snapshot: Snapshot, now: float) -> None:
        self._last[snapshot.key] = now

    def victims(self, holdings: list[Held], need: int, now: float) -> tuple[str, ...] | None:
        found = in_order(holdings, need, lambda h: (self._uses[h.key], self._last.get(h.key, 0.0)))
        return None if found is None else found[1]


class Gdsf:
    """Greedy-Dual-Size-Frequency (Cherkasova, "Improving WWW proxies performance with Greedy-Dual-Size-Frequency
    caching policy", HPL-98-69R1): uses since it came × cost ÷ size, and the priority of the last that left."""

    def __init__(self) -> None:
        self._age = 0.0
        self._uses = Counter[Key]()
        self._priority: dict[Key, float] = {}

    def acquired(self, snapshot: Snapshot, now: float, cost: float) -> None:
        self._uses[snapshot.key] += 1
        self._priority[snapshot.key] = self._age + self._uses[snapshot.key] * cost / max(1, snapshot.size)

    def released(self, snapshot: Snapshot, now: float) -> None:
        pass

    def victims(self, holdings: list[Held], need: int, now: float) -> tuple[str, ...] | None:
        found = in_order(holdings, need, lambda h: self._priority.get(h.key, 0.0))
        if found is None:
            return None
        for key in found[0]:
            self._age = max(self._age, self._priority.pop(key, 0.0))
            del self._uses[key]
        return found[1]


class Clairvoyant:
    """Knows the future: who saves the least for each byte, until its blobs are asked for again, goes; nobody in vain.
    Of equal sizes and costs, nothing shared and nothing leased it is Belady's, which nobody can do better than; else a
    greedy approximation of what is best, not a proven bound."""

    def __init__(self, trace: Trace) -> None:
        self._times: dict[str, list[float]] = {}
        self._blobs = {key: snapshot.blobs for key, snapshot in trace.snapshots.items()}
        for request in trace.requests:
            for blob in self._blobs[request.key]:
                self._times.setdefault(blob, []).append(request.time)

    def acquired(self, snapshot: Snapshot, now: float, cost: float) -> None:
        pass

    def released(self, snapshot: Snapshot, now: float) -> None:
        pass

    def victims(self, holdings: list[Held], need: int, now: float) -> tuple[str, ...] | None:
        found = in_order(holdings, need, lambda h: self._worth(h, now), spare=True)
        return None if found is None else found[1]

    def _worth(self, holding: Held, now: float) -> float:
        saved = sum(size / self._wait(blob, now) for blob, size in holding.blobs.items())
        return saved * holding.cost / max(1, holding.size) ** 2

    def _wait(self, blob: str, now: float) -> float:
        times = self._times[blob]
        after = bisect.bisect_right(times, now)
        return times[after] - now if after < len(times) else math.inf


Rank = Callable[[Held], float | tuple[float, ...]]


def in_order(
    holdings: list[Held], need: int, rank: Rank, *, spare: bool = False
) -> tuple[list[Key], tuple[str, ...]] | None:
    """Those of the lowest rank go until `need` bytes do; then, with `spare`, those of the highest rank stay that are
    not needed. Keys and blobs that go; None where too little can."""
    holders = Counter(b for h in holdings for b in h.blobs)
    freed = 0
    going: list[Held] = []
    for holding in sorted((h for h in holdings if not h.protected), key=rank):
        if freed >= need:
            break
        going.append(holding)
        holders.subtract(holding.blobs.keys())
        freed += _free(holding, holders)
    if freed < need:
        return None
    if spare:
        going = _without_vain(going, holders, freed - need)
    gone = dict.fromkeys(b for h in going for b in h.blobs if not holders[b])
    return [h.key for h in going], tuple(gone)


def _without_vain(going: list[Held], holders: Counter[str], over: int) -> list[Held]:
    needed = []
    for holding in reversed(going):
        back = _free(holding, holders)
        if back <= over:
            over -= back
            holders.update(holding.blobs.keys())
        else:
            needed.append(holding)
    return needed


def _free(holding: Held, holders: Counter[str]) -> int:
    """Bytes of it that nobody has any more."""
    return sum(size for blob, size in holding.blobs.items() if not holders[blob])


Make = Callable[[Trace], Policy]
OURS, BASE, BOUND = "weightd", "LRU", "clairvoyant"
CONTENDERS: dict[str, Make] = {
    OURS: lambda _: Weightd(),
    BASE: lambda _: Lru(),
    "LRFU": lambda _: Weightd(Decayed()),
    "LFU": lambda _: Lfu(),
    "GDSF": lambda _: Gdsf(),
    BOUND: Clairvoyant,
}
