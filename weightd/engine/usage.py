"""How often each ref is used, and what it costs to bring it back: what eviction weighs."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final

from weightd.core.eviction import Use
from weightd.core.manifest import Manifest
from weightd.core.refs import Ref
from weightd.engine.api import Tier
from weightd.storage.state import State

LATENCY_S: Final = {Tier.SHM: 0.05, Tier.NVME: 1.0}
"""Of a load, and of a fetch, whatever the size: opening, resolving, the first answer."""
RATE: Final = {Tier.SHM: 2e9, Tier.NVME: 200e6}
"""Bytes per second that are assumed until one was measured: of a usual NVMe drive; of an object store elsewhere."""
SMOOTHING: Final = 0.3
"""Share of the newest measurement."""
FORGOTTEN_S: Final = 90 * 86400.0
"""After which a ref that is not held is as one that was never used: so that not every ref that ever was is known."""


class Usage:
    """On the event loop; `write` runs a blocking call in the state's thread. By the text of the ref."""

    def __init__(self, state: State, write: Callable[..., Awaitable[Any]]) -> None:
        self._state, self._write = state, write
        self._uses: dict[str, Use] = {}
        self._unsaved: set[str] = set()
        self._rates: dict[str, float] = {}
        self._load_rate = RATE[Tier.SHM]

    async def start(self) -> None:
        """What earlier processes recorded."""
        self._uses = {ref: Use(*use) for ref, use in (await self._write(self._state.uses)).items()}

    def touch(self, ref: Ref) -> None:
        """It is used now."""
        self._uses[ref.text] = self.of(ref).touched(time.time())
        self._unsaved.add(ref.text)

    def end(self, ref: Ref) -> None:
        """A use of it has ended: a lease of hours is no idle time."""
        self._uses[ref.text] = self.of(ref).ended(time.time())
        self._unsaved.add(ref.text)

    def expect(self, ref: Ref) -> None:
        """It was brought here to be used."""
        self._uses[ref.text] = self.of(ref).expected(time.time())
        self._unsaved.add(ref.text)

    def of(self, ref: Ref) -> Use:
        return self._uses.get(ref.text, Use())

    def brought(self, ref: Ref, tier: Tier, size: int, seconds: float) -> None:
        """`size` bytes came into this tier in so many seconds."""
        if size <= 0 or seconds <= 0:
            return
        rate = size / seconds
        if tier is Tier.SHM:
            self._load_rate += SMOOTHING * (rate - self._load_rate)
        else:
            before = self._rates.get(ref.text, rate)
            self._rates[ref.text] = before + SMOOTHING * (rate - before)

    def cost(self, ref: Ref, manifest: Manifest, tier: Tier) -> float:
        """Seconds to bring it back into this tier, from the one below."""
        rate = self._load_rate if tier is Tier.SHM else self._rates.get(ref.text, RATE[tier])
        return LATENCY_S[tier] + manifest.size / rate

    async def save(self) -> None:
        """What was not yet recorded. Raises DiskFull; then it is still to be recorded."""
        unsaved, self._unsaved = self._unsaved, set()
        if not unsaved:
            return
        uses = {ref: self._uses[ref] for ref in unsaved}
        try:
            await self._write(self._state.put_uses, {ref: (use.weight, use.at) for ref, use in uses.items()})
        except BaseException:
            self._unsaved |= unsaved
            raise

    async def forget(self, held: Collection[str]) -> None:
        """What nobody has used for FORGOTTEN_S, but for the refs, by their text, that are `held`. Raises DiskFull; then
        the next process forgets it."""
        before = time.time() - FORGOTTEN_S
        old = [ref for ref, use in self._uses.items() if use.at < before and ref not in held]
        for ref in old:
            del self._uses[ref]
            self._rates.pop(ref, None)
        self._unsaved.difference_update(old)
        if old:
            await self._write(self._state.drop_uses, old)
