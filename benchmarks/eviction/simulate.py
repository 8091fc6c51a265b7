"""One tier of one host, played through. Pure: time is that of the trace.

A request whose blobs are all in the tier is a hit. Else what is missing is brought, after room was made for it, and
somebody waits for as long as that takes. Leased snapshots stay, as does what is being brought.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from benchmarks.eviction.trace import Request, Snapshot, Trace
from weightd.core.eviction import Holding

Key = tuple[str, str]
"""Ref and revision."""
Held = Holding[Key, str]


class Tier(NamedTuple):
    """What it costs to bring something into it: seconds that do not depend on the size, bytes per second."""

    name: str
    delay: float
    rate: float
    by_ref: bool = False
    """Whether the trace's `paces` apply: those of origins, not those of the host's drive."""

    def seconds(self, trace: Trace, ref: str, size: int) -> float:
        pace = trace.paces.get(ref, 1.0) if self.by_ref else 1.0
        return self.delay + size / (self.rate * pace)


SHM = Tier("shm", 0.05, 3e9)
NVME = Tier("nvme", 1.0, 0.5e9, by_ref=True)


class Policy(Protocol):
    """Who leaves. It is told what happens, in the order of time."""

    def acquired(self, snapshot: Snapshot, now: float, cost: float) -> None:
        """It is leased, and in the tier; bringing all of it costs so many seconds."""
        ...

    def released(self, snapshot: Snapshot, now: float) -> None:
        """One of its leases has ended."""
        ...

    def victims(self, holdings: list[Held], need: int, now: float) -> tuple[str, ...] | None:
        """Blobs that leave so that `need` bytes do; None where they cannot. `use` of the holdings is not set."""
        ...


class Outcome(NamedTuple):
    """Sums over all requests that fit into the tier at all; `oversized` did not, and are not in any other number.
    `refused`: found no room, because others were leased; they waited as for a miss, and left the tier as it was."""

    requests: int
    hits: int
    size: int
    size_hit: int
    waited: float
    refused: int
    oversized: int
    most: int
    """Bytes in the tier at most."""

    @property
    def hit_rate(self) -> float:
        return self.hits / self.requests if self.requests else 0.0

    @property
    def byte_hit_rate(self) -> float:
        return self.size_hit / self.size if self.size else 0.0


def simulate(trace: Trace, tier: Tier, limit: int, policy: Policy) -> Outcome:
    """All of the trace, in a tier of `limit` bytes that is empty at first."""
    host = _Host(trace, tier, limit, policy)
    for request in trace.requests:
        host.serve(request)
    return host.outcome()


class _Host:
    def __init__(self, trace: Trace, tier: Tier, limit: int, policy: Policy) -> None:
        self._trace, self._tier, self._limit, self._policy = trace, tier, limit, policy
        self._blobs = {key: snapshot.blobs for key, snapshot in trace.snapshots.items()}
        self._sizes = {key: sum(blobs.values()) for key, blobs in self._blobs.items()}
        self._seen: dict[Key, Snapshot] = {}
        self._resident: dict[str, int] = {}
        self._used = 0
        self._leases: list[tuple[float, Key]] = []
        self._leased: dict[Key, int] = {}
        self._hits = self._size = self._size_hit = self._refused = self._oversized = self._served = self._most = 0
        self._waited = 0.0

    def serve(self, request: Request) -> None:
        self._release(request.time)
        snapshot, blobs = self._trace.snapshots[request.key], self._blobs[request.key]
        if self._sizes[request.key] > self._limit:
            self._oversized += 1
            return
        missing = {b: size for b, size in blobs.items() if b not in self._resident}
        lacking = sum(missing.values())
        self._served += 1
        self._size += self._sizes[request.key]
        self._size_hit += self._sizes[request.key] - lacking
        if missing:
            self._waited += self._tier.seconds(self._trace, request.ref, lacking)
            if not self._bring(request, missing, lacking):
                self._refused += 1
                return
        else:
            self._hits += 1
        self._seen[request.key] = snapshot
        self._policy.acquired(snapshot, request.time, self._cost(request.key))
        self._lease(request)

    def _bring(self, request: Request, missing: Mapping[str, int], lacking: int) -> bool:
        need = self._used + lacking - self._limit
        if need > 0:
            gone = self._policy.victims(self._holdings(request.key), need, request.time)
            if gone is None:
                return False
            for blob in gone:
                self._used -= self._resident.pop(blob)
        self._resident.update(missing)
        self._used += lacking
        self._most = max(self._most, self._used)
        return True

    def _holdings(self, wanted: Key) -> list[Held]:
        """As the engine gives them to `plan_eviction`: the snapshots that are known, with what of them is there."""
        found = [self._holding(key, protected=key in self._leased) for key in self._seen if key != wanted]
        return [*(h for h in found if h.blobs), self._holding(wanted, protected=True)]

    def _holding(self, key: Key, *, protected: bool) -> Held:
        there = {b: size for b, size in self._blobs[key].items() if b in self._resident}
        return Holding(key, there, cost=self._cost(key), delay=self._tier.delay, protected=protected)

    def _cost(self, key: Key) -> float:
        return self._tier.seconds(self._trace, key[0], self._sizes[key])

    def _lease(self, request: Request) -> None:
        self._leased[request.key] = self._leased.get(request.key, 0) + 1
        heapq.heappush(self._leases, (request.time + request.held, request.key))

    def _release(self, now: float) -> None:
        """What ended before, or at, this moment."""
        while self._leases and self._leases[0][0] <= now:
            end, key = heapq.heappop(self._leases)
            self._leased[key] -= 1
            if not self._leased[key]:
                del self._leased[key]
            self._policy.released(self._trace.snapshots[key], end)

    def outcome(self) -> Outcome:
        return Outcome(
            self._served,
            self._hits,
            self._size,
            self._size_hit,
            self._waited,
            self._refused,
            self._oversized,
            self._most,
        )
